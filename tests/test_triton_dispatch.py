"""Which implementation ``auto`` runs where times were measured, and what ``explain`` says of it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flashmix
from bench_helpers import make_row
from flashmix import ops
from flashmix.bench import BenchmarkCase, read_rows
from flashmix.errors import ImplementationError
from flashmix.ops._triton.tuning import TABLE as TUNED
from flashmix.ops.dispatch import Operator, Signature, costs, implementation, tables
from flashmix.ops.fnet.plan import plan
from report_helpers import write_run

H200 = "NVIDIA H200"
SIZES = ("batch", "seq_len", "dim", "num_heads", "modes", "window", "topk")
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def fresh_tables():
    """Forget what other tests looked up, before and after."""
    tables.forget()
    yield
    tables.forget()


def machine_here(monkeypatch, name, capability, shared_kib=227):
    """Choose as on a machine with that GPU, Triton's compiler included."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(costs, "device_name", lambda device: name)
    monkeypatch.setattr(costs, "capability", lambda device: capability)
    monkeypatch.setattr(implementation, "shared_memory", lambda device: shared_kib << 10)


@pytest.fixture
def an_h200(monkeypatch):
    machine_here(monkeypatch, H200, (9, 0))


def write_table(monkeypatch, path, ops, machine=H200, capability="9.0"):
    """A shipped table of forward times, each with an interval of 1 %: op, sizes, ms by name."""
    held = {}
    for op, sizes, ms in ops:
        times = held.setdefault(op, {"run": "a run", "times": {"bfloat16": {"forward": []}}})
        times["times"]["bfloat16"]["forward"].append(
            {"sizes": sizes, "ms": {name: [t, 0.99 * t, 1.01 * t] for name, t in ms.items()}}
        )
    found = {
        "format": tables.FORMAT,
        "machines": {machine: {"capability": capability, "ops": held}},
    }
    path.write_text(json.dumps(found))
    monkeypatch.setattr(tables, "SHIPPED", path)
    tables.forget()


def heads(seq_len, **options):
    return {"batch": 4, "seq_len": seq_len, "dim": 512, "num_heads": 8, **options}


def chosen(op, *shape, dtype=torch.float16, **options):
    return flashmix.explain(op, shape, dtype, "cuda", **options).impl


def test_the_table_is_that_of_the_committed_runs():
    table = json.loads(tables.SHIPPED.read_text())
    compared = 0
    for machine in table["machines"].values():
        for op, measured in machine["ops"].items():
            names = SIZES if op.endswith("attention") else [n for n in SIZES if n != "num_heads"]
            rows = {
                (row["dtype"], row["direction"], row["impl"], *(row[n] for n in names)): row
                for row in read_rows(ROOT / measured["run"])
                if (row["op"], row["mixer"], row["status"]) == (op, op, "ok")
            }
            for dtype, directions in measured["times"].items():
                for direction, entries in directions.items():
                    of_row = {"forward": "forward", "training": "forward_backward"}[direction]
                    for entry in entries:
                        sizes = entry["sizes"]
                        for impl, (median, low, high) in entry["ms"].items():
                            key = dtype, of_row, impl, *(sizes.get(name) for name in names)
                            assert median == pytest.approx(rows[key]["median_ms"], abs=1e-6)
                            assert low <= median <= high
                            compared += 1
    assert compared > 200


def test_both_half_types_use_what_was_measured_in_bfloat16():
    assert costs.measured_dtype(torch.float16) == "bfloat16"
    assert costs.measured_dtype(torch.float32) == "float32"


@pytest.mark.usefixtures("an_h200")
def test_a_call_takes_the_nearest_measured_sizes():
    for shape, at in (((60, 4000, 768), "seq_len 4096"), ((8, 512, 200), "dim 256")):
        assert at in flashmix.explain("fnet", shape, torch.bfloat16, "cuda").reason


@pytest.mark.usefixtures("an_h200")
def test_auto_runs_the_fastest_measured_and_says_so():
    explained = flashmix.explain("fnet", (64, 4096, 768), torch.float16, "cuda")
    assert explained.impl == "triton"
    assert "measured on NVIDIA H200" in explained.reason
    assert "benchmarks/results/h200/kernels" in explained.reason
    assert chosen("spectral", 32, 4096, 768, modes=128) == "triton"


@pytest.mark.usefixtures("an_h200")
def test_a_call_takes_what_its_explanation_names(monkeypatch):
    """One decision: the call and the explanation go through the same function."""
    seen = []
    select = Operator.select
    monkeypatch.setattr(Operator, "select", lambda *given: seen.append(select(*given)) or seen[-1])
    flashmix.ops.fnet(torch.zeros(1, 8, 4))
    explained = flashmix.explain("fnet", (1, 8, 4), masked=False)
    call, asked = seen
    assert call is asked is explained


@pytest.mark.usefixtures("an_h200")
def test_forward_and_training_have_costs_of_their_own(monkeypatch, tmp_path):
    sizes = {"batch": 8, "seq_len": 512, "dim": 256}
    write_table(monkeypatch, tmp_path / "t", [("fnet", sizes, {"torch": 2.0, "triton": 1.0})])
    table = json.loads((tmp_path / "t").read_text())
    times = table["machines"][H200]["ops"]["fnet"]["times"]["bfloat16"]
    times["training"] = [{"sizes": sizes, "ms": {"torch": [2, 2, 2], "triton": [3, 3, 3]}}]
    (tmp_path / "t").write_text(json.dumps(table))
    tables.forget()
    assert chosen("fnet", 8, 512, 256) == "triton"
    explained = flashmix.explain("fnet", (8, 512, 256), torch.half, "cuda", direction="training")
    assert explained.impl == "torch"
    assert "(training, measured" in explained.reason


@pytest.mark.usefixtures("an_h200")
def test_training_uses_forward_times_where_only_those_were_measured(monkeypatch, tmp_path):
    sizes = {"batch": 8, "seq_len": 512, "dim": 256}
    write_table(monkeypatch, tmp_path / "t", [("fnet", sizes, {"torch": 2.0, "triton": 1.0})])
    assert chosen("fnet", 8, 512, 256, direction="training") == "triton"


@pytest.mark.usefixtures("an_h200")
def test_of_times_that_overlap_the_fewest_launches_win(monkeypatch, tmp_path):
    sizes = {"batch": 8, "seq_len": 512, "dim": 256}
    near = {"torch": 1.0, "triton_columns": 1.005, "triton": 1.019}
    write_table(monkeypatch, tmp_path / "t", [("fnet", sizes, near)])
    explained = flashmix.explain("fnet", (8, 512, 256), torch.half, "cuda")
    assert explained.impl == "triton"
    assert "as fast as 'torch' within the error" in explained.reason
    write_table(monkeypatch, tmp_path / "t", [("fnet", sizes, {**near, "triton": 1.03})])
    assert chosen("fnet", 8, 512, 256) == "triton_columns"


def test_a_gpu_that_nobody_measured_takes_the_choices_of_the_nearest(monkeypatch):
    machine_here(monkeypatch, "NVIDIA H100", (9, 0))
    explained = flashmix.explain("fnet", (64, 4096, 768), torch.half, "cuda")
    assert explained.impl == "triton"
    assert "NVIDIA H100 (compute capability 9.0) was not measured" in explained.reason
    assert "measured on NVIDIA H200" in explained.reason


def test_a_gpu_takes_what_its_shared_memory_holds(monkeypatch):
    machine_here(monkeypatch, "NVIDIA A100", (8, 0), shared_kib=163)
    assert chosen("fnet", 64, 4096, 768) == "triton"
    assert chosen("fnet", 64, 4096, 768, dtype=torch.float32) != "triton"


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("op", [op for op in ops.OPERATORS if op != "attention"])
def test_a_gpu_whose_shared_memory_holds_no_tiles_refuses_each_kernel_in_a_sentence(
    monkeypatch, op
):
    """Named or not; on another machine nobody knows."""
    operator = ops.OPERATORS[op]
    kernels = [one for one in operator.implementations if one.name.startswith("triton")]
    assert all({2, 4} <= one.shared_memory.keys() for one in kernels)
    machine_here(monkeypatch, "a small GPU", (7, 5), shared_kib=31)
    shape = (2, 512, 256) if len(operator.axes.split(", ")) == 3 else (2, 4, 512, 64)
    place, options = torch.device("cuda"), {"modes": 64, "window": 64, "topk": 64}
    for dtype in (torch.float16, torch.float32):
        here = Signature(shape, dtype, place, options)
        assert not operator.select("auto", here).impl.startswith("triton")
        for one in kernels:
            words = "KiB of shared memory for .* has 31 KiB a block"
            with pytest.raises(ImplementationError, match=words):
                operator.select(one.name, here)
            elsewhere = Signature(shape, dtype, place, options, machine=H200)
            assert "shared memory" not in str(one.refusal(elsewhere))


def test_the_nearest_capability_is_taken(monkeypatch, tmp_path):
    sizes = {"batch": 8, "seq_len": 512, "dim": 256}
    write_table(monkeypatch, tmp_path / "t", [("fnet", sizes, {"torch": 2.0, "triton": 1.0})])
    table = json.loads((tmp_path / "t").read_text())
    other = json.loads(json.dumps(table["machines"][H200]))
    other["capability"] = "8.0"
    other["ops"]["fnet"]["times"]["bfloat16"]["forward"][0]["ms"]["torch"] = [0.1, 0.1, 0.1]
    table["machines"]["NVIDIA A100"] = other
    (tmp_path / "t").write_text(json.dumps(table))
    for capability, impl in (((8, 0), "torch"), ((8, 7), "torch"), ((10, 0), "triton")):
        tables.forget()
        machine_here(monkeypatch, "another GPU", capability)
        assert chosen("fnet", 8, 512, 256) == impl


@pytest.mark.usefixtures("an_h200")
def test_attention_takes_a_prime_length_for_any_other():
    explained = flashmix.explain("topk_attention", (4, 8, 4099, 64), torch.half, "cuda", topk=32)
    assert explained.impl == "triton"
    assert "measured on NVIDIA H200" in explained.reason


@pytest.mark.usefixtures("an_h200")
def test_heads_count_as_sequences_of_their_own():
    for shape in ((6, 1, 16384, 64), (1, 6, 16384, 64), (2, 3, 16384, 64)):
        explained = flashmix.explain("topk_attention", shape, torch.float16, "cuda", topk=32)
        assert explained.impl == "triton"
        assert "at batch 1, seq_len 16384, dim 512, num_heads 8" in explained.reason


@pytest.mark.usefixtures("an_h200")
def test_auto_leaves_what_the_kernels_refuse_to_torch():
    explained = flashmix.explain("fnet", (8, 4099, 768), torch.float16, "cuda")
    assert explained.impl == "torch"
    assert "N = 4099" in explained.alternatives["triton"]
    explained = flashmix.explain("spectral", (8, 4096, 768), torch.float16, "cuda", causal=True)
    assert explained.impl == "torch"
    assert "no causal filter" in explained.alternatives["triton"]


@pytest.mark.usefixtures("an_h200")
def test_a_time_that_grows_with_an_option_is_scaled_beyond_what_was_measured(monkeypatch, tmp_path):
    sizes = {"batch": 1, "seq_len": 131072, "dim": 768, "modes": 128}
    ms = {"torch": 5.0, "triton": 1.5, "triton_columns": 6.0}
    write_table(monkeypatch, tmp_path / "t", [("spectral", sizes, ms)])

    def explained(modes):
        return flashmix.explain("spectral", (1, 131072, 768), torch.half, "cuda", modes=modes)

    assert [explained(modes).impl for modes in (64, 128, 384)] == ["triton"] * 3
    assert explained(512).impl == "torch"
    assert "'triton' takes longer the more modes" in explained(512).reason
    assert "takes longer" not in explained(128).reason


@pytest.mark.usefixtures("an_h200")
def test_attention_is_looked_up_by_heads_and_window_or_k_too(monkeypatch, tmp_path):
    ops = [
        ("local_attention", heads(4096, window=128), {"torch": 0.2, "triton": 0.03}),
        ("local_attention", heads(64, window=128), {"torch": 0.02, "triton": 0.03}),
        ("topk_attention", heads(4096, topk=32), {"torch": 17.0, "triton": 1.0}),
    ]
    write_table(monkeypatch, tmp_path / "t", ops)
    assert chosen("local_attention", 4, 8, 4000, 64, window=100) == "triton"
    assert chosen("local_attention", 4, 8, 100, 64, window=128) == "torch"
    assert chosen("local_attention", 4, 8, 4096, 64, window=4096) == "torch"
    assert chosen("local_attention", 4, 8, 4096, 64) == "torch", "a window is not given"
    assert chosen("local_attention", 4, 8, 4096, 64, window=128, dtype=torch.float32) == "torch"
    assert chosen("topk_attention", 4, 8, 4096, 64, topk=32) == "triton"
    assert chosen("topk_attention", 4, 8, 4096, 64, topk=1024) == "torch"
    assert chosen("block_topk_attention", 4, 8, 4096, 64, topk=32) == "torch"
    assert chosen("attention", 4, 8, 4096, 64) == "torch"


def test_the_table_of_a_run_names_what_attention_is_looked_up_by(tmp_path):
    def rows(op, impl, ms, **knobs):
        case = BenchmarkCase(
            suite="kernels",
            mixer=op,
            op=op,
            impl=impl,
            subject="op",
            batch=4,
            seq_len=4096,
            dim=512,
            num_heads=8,
            dtype="bfloat16",
            device="cuda",
            **knobs,
        )
        return make_row(impl, 4096, ms, host_ms=9.0) | case.as_dict()

    found = [
        rows("local_attention", "torch", 0.2, window=128),
        rows("local_attention", "sdpa", 0.3, window=128),
        rows("local_attention", "triton", 0.03, window=128),
        rows("topk_attention", "torch", 9.0, topk=32),
    ]
    folder = write_run(tmp_path / "run", found)
    about = json.loads((folder / "run.json").read_text())
    about["machine"] |= {"gpu": H200, "commit": "abc"}
    (folder / "run.json").write_text(json.dumps(about))
    spec = importlib.util.spec_from_file_location("update", ROOT / "scripts/update_dispatch.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    machine = script.table([folder])["machines"][H200]
    assert machine["capability"] == "9.0"
    (measured,) = machine["ops"]["local_attention"]["times"]["bfloat16"]["forward"]
    assert machine["ops"].keys() == {"local_attention"}
    assert measured["sizes"] == heads(4096, window=128)
    assert {name: time[0] for name, time in measured["ms"].items()} == {
        "torch": 0.2,
        "triton": 0.03,
    }


def test_tuned_parameters_fit_the_plans_they_are_for():
    pytest.importorskip("triton")
    from flashmix.ops.fnet.triton import launch

    for entry in json.loads(TUNED.read_text())["fnet"]:
        sizes = entry["sizes"]
        cut = plan(sizes["seq_len"], sizes["dim"], torch.bfloat16)
        assert cut.n1 == entry["parameters"]["n1"]
        assert launch.config(cut, torch.bfloat16).tail_c == entry["parameters"]["tail_c"]


def test_importing_the_ops_imports_no_triton():
    code = "import sys, flashmix.ops; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.usefixtures("an_h200")
def test_auto_takes_no_kernel_without_a_table(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "SHIPPED", tmp_path / "none.json")
    tables.forget()
    explained = flashmix.explain("fnet", (64, 4096, 768), torch.float16, "cuda")
    assert explained.impl == "torch"
    assert "can run" in explained.alternatives["triton"]

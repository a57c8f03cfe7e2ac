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
from flashmix.bench import Case, read_rows
from flashmix.ops import _measured
from flashmix.ops._triton.tuning import TABLE as TUNED
from flashmix.ops.fnet.plan import plan
from report_helpers import write_run

H200 = "NVIDIA H200"
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def a_table():
    """Forget what other tests looked up, before and after."""

    def forget():
        for cached in (_measured._table, _measured._measurements, _measured._nearest):
            cached.cache_clear()

    forget()
    yield
    forget()


def nearest(op, dtype="bfloat16", **sizes):
    return _measured._nearest(H200, op, dtype, tuple(sizes.items()))


@pytest.fixture
def an_h200(monkeypatch):
    """Choose as on a machine with that GPU, Triton's compiler included."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_measured, "device_name", lambda device: H200)


def test_the_table_is_that_of_the_committed_runs():
    table = json.loads(_measured.TABLE.read_text())
    rows = [
        row
        for op, run in table["runs"].items()
        for row in read_rows(ROOT / run["folder"])
        if (row["op"], row["direction"], row["status"]) == (op, "forward", "ok")
    ]
    entries = [
        (op, dtype, entry)
        for op, dtypes in table["gpus"][H200].items()
        for dtype, found in dtypes.items()
        for entry in found
    ]
    assert entries
    for op, dtype, entry in entries:
        measured = {
            row["impl"]: row["median_ms"] + row["host_ms"]
            for row in rows
            if (row["op"], row["dtype"], row["mixer"]) == (op, dtype, op)
            and row["impl"] in entry["ms"]
            and all(row[name] == size for name, size in entry["sizes"].items())
        }
        assert entry["ms"] == pytest.approx(measured, abs=1e-5)


def test_float16_goes_by_what_was_measured_in_bfloat16():
    assert nearest("fnet", batch=8, seq_len=512, dim=256, dtype=_measured.stands_for(torch.float16))
    assert _measured.stands_for(torch.float32) == "float32"


def test_a_case_goes_by_the_nearest_within_reach():
    assert nearest("fnet", batch=60, seq_len=4000, dim=768).sizes["seq_len"] == 4096
    assert nearest("fnet", batch=8, seq_len=512, dim=200).sizes["dim"] == 256
    assert nearest("fnet", batch=8, seq_len=8, dim=256) is None
    assert nearest("spectral", batch=32, seq_len=4096, dim=768, modes=8) is None
    assert _measured._nearest("another GPU", "fnet", "bfloat16", (("batch", 1),)) is None


@pytest.mark.usefixtures("an_h200")
def test_auto_runs_the_fastest_measured_and_says_so():
    told = flashmix.explain("fnet", (64, 4096, 768), torch.float16, "cuda")
    assert told.impl == "triton"
    assert "measured on NVIDIA H200" in told.reason
    assert "benchmarks/results/h200/kernels" in told.reason
    told = flashmix.explain("spectral", (32, 4096, 768), torch.float16, "cuda", modes=128)
    assert told.impl == "triton"


@pytest.mark.usefixtures("an_h200")
def test_attention_takes_a_prime_length_for_any_other():
    told = flashmix.explain("topk_attention", (4, 8, 4099, 64), torch.float16, "cuda", topk=32)
    assert told.impl == "triton"
    assert "measured on NVIDIA H200" in told.reason


@pytest.mark.usefixtures("an_h200")
def test_heads_count_as_sequences_of_their_own():
    for shape in ((6, 1, 16384, 64), (1, 6, 16384, 64), (2, 3, 16384, 64)):
        told = flashmix.explain("topk_attention", shape, torch.float16, "cuda", topk=32)
        assert told.impl == "triton"
        assert "at batch 1, seq_len 16384, dim 512, num_heads 8" in told.reason


@pytest.mark.usefixtures("an_h200")
def test_auto_leaves_what_the_kernels_refuse_or_nobody_measured_to_torch():
    told = flashmix.explain("fnet", (8, 4099, 768), torch.float16, "cuda")
    assert told.impl == "torch"
    assert "N = 4099" in told.alternatives["triton"]
    told = flashmix.explain("spectral", (8, 4096, 768), torch.float16, "cuda", causal=True)
    assert told.impl == "torch"
    assert "no causal filter" in told.alternatives["triton"]
    told = flashmix.explain("spectral", (8, 4096, 768), torch.float16, "cuda", modes=8)
    assert told.impl == "torch"


@pytest.mark.usefixtures("an_h200")
def test_what_grows_with_the_modes_is_taken_to_where_there_are_more_of_them(monkeypatch, tmp_path):
    sizes = {"batch": 1, "seq_len": 131072, "dim": 768, "modes": 128}
    entry = {"sizes": sizes, "ms": {"torch": 5.0, "triton": 1.5, "triton_columns": 6.0}}
    table = tmp_path / "measured.json"
    table.write_text(json.dumps({"gpus": {H200: {"spectral": {"bfloat16": [entry]}}}}))
    monkeypatch.setattr(_measured, "TABLE", table)

    def told(modes):
        return flashmix.explain("spectral", (1, 131072, 768), torch.float16, "cuda", modes=modes)

    assert [told(modes).impl for modes in (64, 128, 384)] == ["triton"] * 3
    assert told(512).impl == "torch"
    assert "triton takes longer the more modes" in told(512).reason
    assert "takes longer" not in told(128).reason


@pytest.mark.usefixtures("an_h200")
def test_attention_goes_by_heads_and_window_or_k_too(monkeypatch, tmp_path):
    def entry(seq_len, torch_ms, triton_ms, **knobs):
        sizes = {"batch": 4, "seq_len": seq_len, "dim": 512, "num_heads": 8, **knobs}
        return {"sizes": sizes, "ms": {"torch": torch_ms, "triton": triton_ms}}

    ops = {
        "local_attention": {
            "bfloat16": [entry(4096, 0.2, 0.03, window=128), entry(64, 0.02, 0.03, window=128)]
        },
        "topk_attention": {"bfloat16": [entry(4096, 17.0, 1.0, topk=32)]},
    }
    table = tmp_path / "measured.json"
    table.write_text(json.dumps({"gpus": {H200: ops}}))
    monkeypatch.setattr(_measured, "TABLE", table)

    def chosen(op, *shape, dtype=torch.float16, **options):
        return flashmix.explain(op, shape, dtype, "cuda", **options).impl

    assert chosen("local_attention", 4, 8, 4000, 64, window=100) == "triton"
    assert chosen("local_attention", 4, 8, 100, 64, window=128) == "torch"
    assert chosen("local_attention", 4, 8, 4096, 64, window=4096) == "torch"
    assert chosen("local_attention", 4, 8, 4096, 64) == "torch"
    assert chosen("local_attention", 4, 8, 4096, 64, window=128, dtype=torch.float32) == "torch"
    assert chosen("topk_attention", 4, 8, 4096, 64, topk=32) == "triton"
    assert chosen("block_topk_attention", 4, 8, 4096, 64, topk=32) == "torch"
    assert chosen("attention", 4, 8, 4096, 64) == "torch"


def test_the_table_of_a_run_names_what_attention_is_looked_up_by(tmp_path):
    def rows(op, impl, ms, **knobs):
        case = Case(
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
        return make_row(impl, 4096, ms, host_ms=0.01) | case.as_dict()

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
    sizes = {"batch": 4, "seq_len": 4096, "dim": 512, "num_heads": 8, "window": 128}
    want = [{"sizes": sizes, "ms": {"torch": 0.21, "triton": 0.04}}]
    assert script.table([folder])["gpus"][H200] == {"local_attention": {"bfloat16": want}}


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
    monkeypatch.setattr(_measured, "TABLE", tmp_path / "none.json")
    told = flashmix.explain("fnet", (64, 4096, 768), torch.float16, "cuda")
    assert told.impl == "torch"
    assert "can run" in told.alternatives["triton"]

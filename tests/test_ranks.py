"""Cases across ranks: real processes measure them, and a rank that dies takes no row with it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench_helpers import WITHOUT_PAGE, make_run
from flashmix.bench import BenchmarkCase, Grid, build_suite, measure, read_rows, runner
from flashmix.bench.ranks import traffic
from flashmix.bench.ranks.launch import RankWorker, check_ranks
from flashmix.bench.runner import run_suite
from flashmix.bench.suites.grid import declared
from flashmix.bench.suites.parallel import doublings
from flashmix.errors import ArgumentError
from flashmix.mixers import FNet
from flashmix.parallel.fnet import strategy as fnet_strategy
from flashmix.report import markdown, statements
from flashmix.report.analysis.parallel import pairs
from flashmix.report.charts import charts

MIXERS = declared("parallel")
TINY = {"dims": (24,), "num_heads": 3, "seq_lens": (97,), "passes": 1}
SETTINGS = {"min_samples": 1, "max_samples": 1, "seconds_per_case": 0, "max_seconds_per_case": 1}


@pytest.fixture(scope="module")
def rows():
    """All mixers over 2 and 3 ranks, at a length that parts evenly among neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "to_repeat", lambda rows: [])
        return measure("parallel", Grid(ranks=3, **TINY), threads=1).rows


def over(rows):
    return [row for row in rows if row["ranks"] > 1]


def test_every_case_is_measured(rows):
    assert [row["status"] for row in rows] == ["ok"] * len(rows)
    assert {(row["mixer"], row["ranks"], row["weak"]) for row in over(rows)} == {
        (mixer, ranks, weak) for mixer in MIXERS for ranks in (2, 3) for weak in (False, True)
    }


def test_bytes_that_travel_are_those_derived(rows):
    assert {row["label"]: row["sent_bytes"] for row in over(rows)} == {
        row["label"]: row["derived_bytes"] for row in over(rows)
    }


def test_ranks_agree_with_one(rows):
    assert all(row["relative_error"] < 1e-5 for row in over(rows) if not row["weak"])


def test_each_rank_has_its_peak(rows):
    for row in over(rows):
        assert len(row["peak_mb_by_rank"]) == row["ranks"]
        assert max(row["peak_mb_by_rank"]) == row["peak_mb"] > 0


def test_one_rank_stands_beside_several_at_the_same_tokens_and_at_as_many_each(rows):
    strong, weak = pairs(rows), pairs(rows, weak=True)
    assert len(strong) == len(weak) == 2 * len(MIXERS)
    assert all(pair.single["seq_len"] == pair.several["seq_len"] for pair in strong)
    assert all(
        pair.single["seq_len"] * pair.several["ranks"] == pair.several["seq_len"] for pair in weak
    )


def test_the_report_has_a_line_for_each(rows):
    text = markdown(make_run(suite="parallel"), rows)
    for title in ("Several ranks relative to one", "Memory, and", "Weak scaling", "Bytes sent"):
        assert f"## {title}" in text
    assert len(statements(rows)) == 2 * len(MIXERS)


def test_charts_show_speed_memory_and_bytes(rows):
    pytest.importorskip("altair")
    found = {chart.name: chart for chart in charts(rows)}
    assert set(found) == {
        f"ranks-{kind}-forward-backward" for kind in ("speedup", "speedup-n", "memory", "bytes")
    }
    assert all(set(chart.series) == set(MIXERS) for chart in found.values())


def as_graphs(rows):
    """Rows as a GPU's would be, those of CUDA graphs twice as fast."""
    found = []
    for row in rows:
        if row["weak"] or row["mixer"] == "copy":
            continue
        case = dataclasses.replace(BenchmarkCase.from_dict(row), graph=True)
        measured = ("status", "params", "output_shape", "noisy")
        times = {k: v / 2 for k, v in row.items() if k.endswith("_ms") and k != "samples_ms"}
        samples = [one / 2 for one in row["samples_ms"]]
        kept = {name: row[name] for name in measured}
        found.append(
            {**case.as_dict(), "label": case.label, "samples_ms": samples, **kept, **times}
        )
    return found


def test_a_gpu_replays_each_mixer_on_one_rank_and_on_several_as_a_graph():
    suite = build_suite("parallel", Grid(device="cuda", ranks=4, mixers=("fnet",), **TINY))
    called = [case for case in suite.cases if case.mixer == "fnet" and not case.weak]
    graphs = [case for case in called if case.graph]
    assert [case.ranks for case in graphs] == [1, 2, 4]
    plain = {case for case in called if not case.graph}
    assert {dataclasses.replace(case, graph=False) for case in graphs} == plain
    assert len({case.group for case in suite.cases if case.mixer == "fnet"}) == 1
    alone = Grid(device="cuda", ranks=2, directions=("backward",), **TINY)
    for grid in (Grid(ranks=2, **TINY), alone):
        assert not any(case.graph for case in build_suite("parallel", grid).cases)


def test_graphs_stand_beside_calls_and_change_none_of_their_figures(rows):
    pytest.importorskip("altair")
    both, graphs = [*rows, *as_graphs(rows)], as_graphs(rows)
    assert pairs(both) == pairs(rows)
    assert pairs(both, weak=True) == pairs(rows, weak=True)
    assert all(pair.single["graph"] and pair.several["graph"] for pair in pairs(both, graph=True))
    assert len(pairs(both, graph=True)) == len(pairs(rows))
    before, after = (markdown(make_run(suite="parallel"), some) for some in (rows, both))
    assert "CUDA graph" not in before
    _, table = after.split("## Several ranks as CUDA graphs, relative to one, forward + backward")
    assert table.partition("##")[0].count("\n| ") == len(graphs) * 2 // 3 + 1
    assert sum("both as CUDA graphs" in line for line in statements(both)) == 2 * len(MIXERS)
    assert {chart.name for chart in charts(both)} - {chart.name for chart in charts(rows)} == {
        "ranks-graph-n-forward-backward"
    }


def test_runs_of_before_there_were_graphs_are_read_as_they_were(rows):
    old = [{name: value for name, value in row.items() if name != "graph"} for row in rows]
    assert [BenchmarkCase.from_dict(row) for row in old] == [
        BenchmarkCase.from_dict(row) for row in rows
    ]
    assert statements(old) == statements(rows)


def test_a_case_that_cannot_be_captured_is_a_row_with_its_error():
    worker = RankWorker(2)
    case = build_suite("parallel", Grid(ranks=2, mixers=("fnet",), **TINY)).cases[1].as_dict()
    job = {"cases": [case, {**case, "graph": True}], "threads": 1, "settings": SETTINGS}
    try:
        done = {event["index"]: event["result"] for event in worker.run(job, 60)
                if event["event"] == "done"}  # fmt: skip
    finally:
        worker.kill()
    assert done[0]["status"] == "ok"
    assert done[1]["status"] == "error"
    assert "CUDA graphs need device 'cuda', got 'cpu'" in done[1]["error"]


@pytest.mark.parametrize(
    ("kernels", "memory", "most"),
    [(False, None, 4 * 264), (True, None, 2 * 320), (True, object(), 2 * 320)],
)
def test_derived_bytes_of_fnet_follow_its_implementation(monkeypatch, kernels, memory, most):
    """float16 is sent as it is between Triton's kernels, and as float32 around PyTorch's FFT."""
    monkeypatch.setattr(fnet_strategy, "kernels_support", lambda x, layout: kernels)
    monkeypatch.setattr(fnet_strategy, "shared_memory", lambda ranks: memory)
    case = BenchmarkCase(
        suite="parallel", mixer="fnet", batch=3, seq_len=8, dim=64, num_heads=1, dtype="float16"
    )
    # 4 tokens of each of two ranks. FFT: 17 and 16 columns of two numbers. Kernels: 16 pairs
    # each, and 16 numbers more in the first rank's rows.
    metadata = 8 * 8
    assert traffic.derived_bytes(case, FNet(64), SimpleNamespace(size=2)) == metadata + 3 * most


def test_a_killed_rank_is_the_rows_status_and_the_next_ones_are_measured(tmp_path, monkeypatch):
    """The second process is killed as soon as it runs; the suite goes on with fresh ones."""
    monkeypatch.setattr(runner, "to_repeat", lambda rows: [])
    killed = []

    def kill(progress):
        if "2 ranks" in progress.now and not killed:
            killed.append(_kill_a_follower())

    grid = Grid(ranks=2, mixers=("fnet",), **TINY)
    # A loaded machine may take more than the usual minute to start two processes.
    run_suite("parallel", grid, tmp_path / "run", threads=1, time_limit=240.0, listener=kill)
    found = {row["status"]: row for row in read_rows(tmp_path / "run")}
    assert len(read_rows(tmp_path / "run")) == len(build_suite("parallel", grid).cases)
    assert set(found) == {"ok", "crashed"}
    assert "rank 1 of 2 was killed by SIGKILL" in found["crashed"]["error"]


def _kill_a_follower():
    """Kill the process that this one started as rank 1."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = [line.split() for line in listed.splitlines() if "bench.ranks.worker" in line]
    (pid,) = [int(line[0]) for line in lines if ":" in line[-2] and line[-1] == "1"]
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_rank_that_fails_tells_why():
    worker = RankWorker(2)
    case = build_suite("parallel", Grid(ranks=2, mixers=("local",), **TINY)).cases[2].as_dict()
    job = {"cases": [{**case, "seq_len": 1}], "threads": 1, "settings": SETTINGS}
    try:
        done = next(event for event in worker.run(job, 60) if event["event"] == "done")
    finally:
        worker.kill()
    assert done["result"]["status"] == "error"
    assert "every rank needs a token, but 2 ranks share 1" in done["result"]["error"]


def test_torchruns_processes_are_the_ranks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "flashmix", "bench", "parallel", "--device", "cpu", "--mixers", "fnet",
         "--seq-lens", "64", "--dims", "16", "--passes", "1", "--out", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", **WITHOUT_PAGE},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_rows(tmp_path / "run")
    assert [(row["ranks"], row["status"]) for row in rows] == [
        (1, "ok"), (1, "ok"), (2, "ok"), (2, "ok"),
    ]  # fmt: skip


def test_ranks_that_cannot_be_are_refused(monkeypatch):
    with pytest.raises(ArgumentError, match="--ranks must be 2 or more, got 1"):
        build_suite("parallel", Grid(ranks=1))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ArgumentError, match="2 ranks need as many GPUs, and this machine has 1"):
        check_ranks(2, "cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ArgumentError, match="--ranks 2 under torchrun with 4 processes"):
        check_ranks(2, "cpu")


def test_ranks_double_up_to_all():
    assert [doublings(ranks) for ranks in (2, 3, 4, 6, 8)] == [
        [2], [2, 3], [2, 4], [2, 4, 6], [2, 4, 8],
    ]  # fmt: skip

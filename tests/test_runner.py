"""A run as it should be: rows whole, nothing repeated, nothing lost. Real worker processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench_helpers import CEILINGS, workers_of
from flashmix import __version__
from flashmix.bench import (
    SUITES,
    BenchmarkCase,
    Grid,
    Suite,
    build_suite,
    read_rows,
    read_run,
    run_suite,
)
from flashmix.bench import runner as runner_module
from flashmix.bench import store as store_module
from flashmix.bench.repeat import to_repeat
from flashmix.bench.stats import summary
from flashmix.bench.store import REPEATS_FILE, RESULTS_FILE, RUN_FILE, RunFolder
from flashmix.errors import ArgumentError, FlashmixError

GRID = Grid(seq_lens=(16,), mixers=("fnet",), directions=("forward", "forward_backward"))
FIELDS = {
    *("suite", "mixer", "impl", "direction", "batch", "seq_len", "dim", "num_heads", "dtype"),
    *("device", "status", "samples_ms", "median_ms", "mean_ms", "std_ms", "peak_mb", "params"),
}


def keys(rows) -> list[str]:
    return [json.dumps(BenchmarkCase.from_dict(row).as_dict()) for row in rows]


@pytest.fixture(scope="module")
def heard():
    """What the listener of the run heard."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, heard) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return run_suite("quick", GRID, out, threads=1, time_limit=120.0, listener=heard.append)


def test_every_case_has_one_row_in_order(finished):
    suite = build_suite("quick", GRID)
    assert keys(read_rows(finished)) == [json.dumps(case.as_dict()) for case in suite.cases]
    assert len(suite.cases) == 8


def test_rows_have_the_promised_fields_and_are_ok(finished):
    for row in read_rows(finished):
        assert set(row) >= FIELDS
        assert row["status"] == "ok"


def test_statistics_of_a_row_are_those_of_its_samples(finished):
    for row in read_rows(finished):
        expected = summary(row["samples_ms"])
        assert {name: row[name] for name in expected} == expected
        assert min(row["samples_ms"]) > 0
        assert len(row["samples_ms"]) >= 3


def test_memory_of_tensors_and_of_the_process_are_apart(finished):
    for row in read_rows(finished):
        assert 0 <= row["peak_mb"] < 10 < row["rss_mb"]


def test_naive_attention_needs_the_matrix_and_parameters_are_counted(finished):
    (row,) = [
        row
        for row in read_rows(finished)
        if (row["label"], row["direction"], row["seq_len"]) == ("attention (naive)", "forward", 16)
    ]
    matrix = row["batch"] * row["num_heads"] * 16 * 16 * 4 / 1e6
    assert row["peak_mb"] >= matrix
    assert row["params"] == 4 * row["dim"] ** 2 + 4 * row["dim"]


def test_the_run_file_says_on_what_it_ran(finished):
    run = read_run(finished)
    assert run["suite"] == "quick"
    assert run["threads"] == 1
    assert run["seed"] == GRID.seed
    assert run["time_limit_s"] == 120.0
    assert run["command"].startswith("flashmix")
    assert Grid.from_dict(run["grid"]) == GRID
    assert run["started"] <= run["finished"]
    machine = run["machine"]
    assert machine["flashmix"] == __version__
    assert machine["threads"] == 1
    assert {"cpu", "cores", "python", "system", "commit"} <= set(machine)
    assert {"torch", "numpy"} <= set(machine["packages"])
    assert run["ceilings"]["copy_gb_per_s"] > 0
    assert run["ceilings"]["matmul_gflop_per_s"] > 0


def test_the_listener_hears_every_row_once_and_how_far_the_run_is(finished, heard):
    rows = [progress.row for progress in heard if progress.row]
    assert rows == store_module.read_rows(finished)
    assert [progress.done for progress in heard if progress.row] == list(range(1, 9))
    repeated = len(to_repeat(rows))
    assert repeated > 0
    assert {progress.total for progress in heard} == {8, 8 + repeated}
    assert heard[-1].done == 8 + repeated
    assert any("fnet" in progress.now and "timing" in progress.now for progress in heard)


def test_no_worker_outlives_its_run(finished):
    assert workers_of(os.getpid()) == []


def test_a_fresh_run_into_a_used_folder_is_refused(finished):
    before = (finished / RESULTS_FILE).read_bytes(), (finished / RUN_FILE).read_bytes()
    with pytest.raises(ArgumentError, match=f"--resume {finished}"):
        run_suite("quick", GRID, finished)
    assert before == ((finished / RESULTS_FILE).read_bytes(), (finished / RUN_FILE).read_bytes())


def no_worker():
    raise AssertionError("a worker was started although nothing was left to do")


def test_resuming_a_finished_run_measures_nothing(finished, monkeypatch):
    monkeypatch.setattr(runner_module, "Worker", no_worker)
    before = (finished / RESULTS_FILE).read_bytes(), (finished / REPEATS_FILE).read_bytes()
    run_suite("quick", Grid(), finished, resume=True)
    assert before == (
        (finished / RESULTS_FILE).read_bytes(),
        (finished / REPEATS_FILE).read_bytes(),
    )


def test_resume_completes_the_second_measurements_too(finished, tmp_path):
    kept = (finished / REPEATS_FILE).read_bytes().splitlines(keepends=True)[:1]
    for name in (RUN_FILE, RESULTS_FILE):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / REPEATS_FILE).write_bytes(kept[0] + b'{"suite": "qui')
    run_suite(None, Grid(), tmp_path, resume=True)
    assert (tmp_path / RESULTS_FILE).read_bytes() == (finished / RESULTS_FILE).read_bytes()
    assert (tmp_path / REPEATS_FILE).read_bytes().startswith(kept[0])
    again, whole = (store_module.read_rows(one, REPEATS_FILE) for one in (tmp_path, finished))
    assert keys(again) == keys(whole)


def test_resume_keeps_what_is_finished_byte_for_byte_and_completes_the_rest(finished, tmp_path):
    kept = (finished / RESULTS_FILE).read_bytes().splitlines(keepends=True)[:5]
    (tmp_path / RUN_FILE).write_bytes((finished / RUN_FILE).read_bytes())
    (tmp_path / RESULTS_FILE).write_bytes(b"".join(kept) + b'{"suite": "qui')
    measured = []
    run_suite(
        None,
        Grid(),
        tmp_path,
        resume=True,
        listener=lambda progress: measured.append(progress.row) if progress.row else None,
    )
    assert (tmp_path / RESULTS_FILE).read_bytes().startswith(b"".join(kept))
    assert keys(read_rows(tmp_path)) == keys(read_rows(finished))
    assert keys(measured) == keys(read_rows(finished))[5:]


def test_resume_goes_on_with_the_settings_of_the_run(finished, tmp_path, monkeypatch):
    seen = {}

    def record(cases, threads, settings, time_limit):
        seen.setdefault("cases", cases)
        seen.update(threads=threads, time_limit=time_limit)
        return iter(())

    (tmp_path / RUN_FILE).write_bytes((finished / RUN_FILE).read_bytes())
    monkeypatch.setattr(runner_module, "_measure", record)
    run_suite(None, Grid(batch=7), tmp_path, threads=2, time_limit=5.0, resume=True)
    assert {case.batch for case in seen["cases"]} == {2}
    assert seen["threads"] == 1
    assert seen["time_limit"] == 120.0


def test_a_listener_that_fails_leaves_rows_and_no_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module.machine, "ceilings", lambda *_: CEILINGS)

    def stop_after_the_second_row(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        run_suite("quick", GRID, tmp_path / "run", threads=1, listener=stop_after_the_second_row)
    # The error is still held here, and with it every frame of the run.
    assert stopped.value is not None
    assert workers_of(os.getpid()) == []
    assert len(read_rows(tmp_path / "run")) == 2
    with RunFolder.hold(tmp_path / "run"):
        pass


def test_a_run_stopped_before_anything_was_measured_can_be_started_again(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner_module.machine, "ceilings", stop)
        with pytest.raises(KeyboardInterrupt):
            run_suite("quick", GRID, tmp_path / "run", threads=1)
    monkeypatch.setattr(runner_module.machine, "ceilings", lambda *_: CEILINGS)
    monkeypatch.setattr(runner_module, "_measure", lambda *_: iter(()))
    run_suite("quick", GRID, tmp_path / "run", threads=1)
    assert read_run(tmp_path / "run")["finished"]


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="sees no GPU; use 'cpu'"):
        run_suite("quick", Grid(device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="holds no run"):
        run_suite("quick", Grid(), tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_a_run_into_a_held_folder_is_refused(tmp_path):
    with RunFolder.hold(tmp_path), pytest.raises(FlashmixError):
        run_suite("quick", GRID, tmp_path)


def test_an_unknown_suite_lists_the_choices_with_the_nearest(tmp_path):
    with pytest.raises(ArgumentError, match=r"did you mean 'quick'\?.*Choices: .*quick"):
        run_suite("quik", Grid(), tmp_path / "run")


def test_an_unknown_mixer_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(ArgumentError, match="did you mean 'fnet'"):
        run_suite("quick", Grid(mixers=("fnett",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_empty_grid_is_refused(monkeypatch):
    monkeypatch.setitem(
        SUITES, "empty", lambda grid: Suite(name="empty", about="no case", cases=())
    )
    with pytest.raises(ArgumentError, match="no case is left"):
        build_suite("empty", Grid())


@pytest.mark.parametrize("name", list(SUITES))
def test_cases_survive_their_rows(name):
    for case in build_suite(name, Grid()).cases:
        row = json.loads(json.dumps({**case.as_dict(), "status": "ok", "label": case.label}))
        assert BenchmarkCase.from_dict(row) == case


@pytest.mark.parametrize("name", list(SUITES))
def test_no_suite_has_a_case_twice(name):
    cases = build_suite(name, Grid()).cases
    assert len(set(cases)) == len(cases)


def test_the_grid_survives_the_run_file():
    assert Grid.from_dict(json.loads(json.dumps(runner_module.dataclasses.asdict(GRID)))) == GRID


def test_a_mixer_named_twice_is_measured_once():
    once = build_suite("quick", Grid(mixers=("fnet", "attention")))
    twice = build_suite("quick", Grid(mixers=("fnet", "attention", "fnet")))
    assert len(set(once.cases)) == len(once.cases)
    assert twice.cases == once.cases


def test_a_run_of_another_suite_is_not_resumed(finished):
    with pytest.raises(ArgumentError, match="holds a run of suite 'quick', not of 'fourier'"):
        run_suite("fourier", GRID, finished, resume=True)

"""Nothing finished is lost or repeated, whatever goes wrong: real processes, really killed."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench_helpers import CEILINGS, alive, make_run, run_cli, start_cli, wait_until, workers_of
from flashmix.bench import (
    SUITES,
    BenchmarkCase,
    Grid,
    Suite,
    machine,
    read_rows,
    read_run,
    run_suite,
)
from flashmix.bench.process import Worker, WorkerDiedError
from flashmix.bench.store import RESULTS_FILE, RUN_FILE, RunFolder
from flashmix.errors import FlashmixError

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def case(mixer: str, impl: str = "auto", *, seq_len: int = 16, **fields) -> BenchmarkCase:
    defaults = {"direction": "forward", "batch": 1, "dim": 4, "num_heads": 1}
    return BenchmarkCase(
        suite="faulty", mixer=mixer, impl=impl, seq_len=seq_len, **{**defaults, **fields}
    )


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run these cases into a folder of their own and return its rows."""

    def measure(*cases, listener=lambda progress: None, time_limit=120.0, **settings):
        suite = Suite(name="faulty", about="what goes wrong", cases=cases, **settings)
        monkeypatch.setitem(SUITES, "faulty", lambda grid: suite)
        monkeypatch.setattr(machine, "ceilings", lambda *_: CEILINGS)
        out = tmp_path / "run"
        run_suite("faulty", Grid(), out, threads=1, time_limit=time_limit, listener=listener)
        assert read_run(out)["finished"]
        assert workers_of(os.getpid()) == []
        return read_rows(out)

    return measure


# A quarter of a second of timing for each case: long enough to be in the middle of one.
LONG = {"min_samples": 5, "max_samples": 250, "seconds_per_case": 0.25}
COMPARED = (case("copy", "torch"), case("attention", "naive"), case("fnet"))


def once_timing(label, act):
    """A listener that calls ``act`` the first time that the case ``label`` is being timed."""
    acted = []

    def listen(progress):
        if not acted and progress.now.endswith(f"{label}: timing"):
            acted.append(True)
            act()

    return listen


def signal_worker(number):
    def act():
        (worker,) = workers_of(os.getpid())
        os.kill(worker, number)

    return act


@pytest.mark.parametrize(
    ("number", "time_limit", "status", "reason"),
    [
        (signal.SIGKILL, 120.0, "crashed", "killed by SIGKILL"),
        (signal.SIGSTOP, 5.0, "timeout", "no progress within 5 s"),
    ],
)
def test_one_case_fails_and_the_others_finish(run, number, time_limit, status, reason):
    listener = once_timing("attention (naive)", signal_worker(number))
    rows = run(*COMPARED, listener=listener, time_limit=time_limit, **LONG)
    failed = [row for row in rows if row["status"] != "ok"]
    assert [(row["status"], row["error"].partition(":")[0]) for row in failed] == [(status, reason)]
    # Each case has one row; those that shared the dead worker were measured again, not lost.
    assert sorted(row["label"] for row in rows) == sorted(one.label for one in COMPARED)


def too_long_for_this_machine() -> int:
    """A length whose N x N float32 scores take twice the memory there is."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 1 << int((2 * total / 4) ** 0.5).bit_length()


@pytest.fixture
def no_sklearn(monkeypatch, tmp_path):
    """Processes started from here on find no scikit-learn."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sklearn.py").write_text("raise ImportError('hidden')")
    path = [str(tmp_path / "hidden"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


def test_out_of_memory_and_errors_are_rows_and_the_others_finish(run, no_sklearn):
    long = too_long_for_this_machine()
    rows = run(
        case("attention", "naive", seq_len=long),
        case("copy", "torch", seq_len=long),
        case("attention", "naive", num_heads=3),
        case("fnet", direction="train", seconds=1.0),
        case("fnet"),
    )
    found = {(row["label"], row["direction"], row["seq_len"]): row for row in rows}
    assert {key: row["status"] for key, row in found.items()} == {
        ("attention (naive)", "forward", long): "oom",
        ("copy", "forward", long): "ok",
        ("attention (naive)", "forward", 16): "error",
        ("fnet", "train", 16): "error",
        ("fnet", "forward", 16): "ok",
    }
    assert "memory" in found["attention (naive)", "forward", long]["error"]
    assert "num_heads" in found["attention (naive)", "forward", 16]["error"]
    assert "pip install 'flashmix[tasks]'" in found["fnet", "train", 16]["error"]


def test_a_worker_takes_no_more_memory_than_the_machine_has():
    """Untouched memory is only promised, so asking for nearly all of it does no harm here."""
    script = (
        "import os, torch\n"
        "from flashmix.bench.worker import limit_memory\n"
        "limit_memory()\n"
        "total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')\n"
        "torch.empty(int(0.97 * total), dtype=torch.uint8)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "allocate memory" in done.stderr


def test_a_worker_ends_with_its_parent_even_in_the_middle_of_a_call():
    # One call of several minutes, during which nothing is read and nothing written.
    endless = case("attention", "sdpa", seq_len=1 << 18, dim=64)
    job = {"cases": [endless.as_dict()], "threads": 1, "settings": {}}
    script = (
        "import subprocess, sys\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'flashmix.bench.worker'], text=True,\n"
        "    stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)\n"
        "worker.stdout.readline()\n"
        f"worker.stdin.write({json.dumps(job)!r} + chr(10))\n"
        "worker.stdin.flush()\n"
        "print(worker.pid, worker.stdout.readline(), flush=True)\n"
        "worker.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker, event = parent.stdout.readline().split(maxsplit=1)
    try:
        assert json.loads(event)["event"] == "doing"
        assert alive(int(worker))
        parent.kill()
        parent.communicate()
        wait_until(lambda: not alive(int(worker)), seconds=30.0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(worker), signal.SIGKILL)


# The parent's side of a worker that misbehaves, which a shell script plays

READY = """echo '{"event": "ready"}'; read job\n"""


@pytest.fixture
def play(monkeypatch, tmp_path):
    """A worker that runs a shell script."""
    with contextlib.ExitStack() as stack:

        def start(script):
            path = tmp_path / "worker"
            path.write_text(f"#!/bin/sh\n{script}")
            path.chmod(0o755)
            monkeypatch.setattr(sys, "executable", str(path))
            worker = Worker()
            stack.callback(worker.kill)
            return worker

        yield start


def events(worker, limit=60.0):
    return list(worker.run({"cases": []}, limit))


def test_events_of_a_job_end_at_idle(play):
    script = """echo '{"event": "doing"}'; echo '{"event": "idle"}'; sleep 60"""
    assert events(play(READY + script)) == [{"event": "doing"}]


def test_a_worker_that_exits_is_crashed_with_its_code_and_last_words(play):
    with pytest.raises(WorkerDiedError, match="exited with code 3: the last words") as death:
        events(play(READY + "echo words >&2; echo the last words >&2; exit 3"))
    assert death.value.status == "crashed"


def test_a_worker_killed_by_a_signal_is_crashed_with_its_name(play):
    with pytest.raises(WorkerDiedError, match="killed by SIGSEGV") as death:
        events(play(READY + "kill -SEGV $$"))
    assert death.value.status == "crashed"


def test_a_worker_killed_in_the_middle_of_an_event_is_crashed(play):
    with pytest.raises(WorkerDiedError, match="killed by SIGKILL") as death:
        events(play(READY + """printf '{"event": "do'; kill -KILL $$"""))
    assert death.value.status == "crashed"


def test_a_silent_worker_is_killed_at_the_time_limit(play):
    worker = play(READY + "sleep 600")
    with pytest.raises(WorkerDiedError, match=r"no progress within 0\.2 s") as death:
        events(worker, limit=0.2)
    assert death.value.status == "timeout"
    assert not alive(worker._process.pid)


def test_what_a_killed_worker_started_is_killed_too(play, tmp_path):
    worker = play(READY + f"sleep 600 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(WorkerDiedError):
        events(worker, limit=1.0)
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not alive(child))


def test_a_worker_that_does_not_start_is_an_error_with_its_last_words(play):
    with pytest.raises(FlashmixError, match=r"did not start: exited with code 1: no such module"):
        play("echo no such module >&2; exit 1")


# The whole command, interrupted

LENGTHS = "16,17,18"
CASES = 12  # copy, two attentions and fnet at three lengths


def bench(out, **options):
    """A run of some seconds."""
    return start_cli(
        *("bench", "quick", "--device", "cpu", "--directions", "forward", "--mixers", "fnet"),
        *("--batch", 1, "--threads", 1, "--seq-lens", LENGTHS, "--out", out),
        **options,
    )


def count(out) -> int:
    results = out / RESULTS_FILE
    return results.read_bytes().count(b"\n") if results.exists() else 0


def wait_for_rows(process, out, fewest=4):
    """Wait until the first rows are there; return the ids of the worker processes."""
    wait_until(lambda: count(out) >= fewest or process.poll() is not None)
    return workers_of(process.pid)


def whole_lines(out) -> bytes:
    data = (out / RESULTS_FILE).read_bytes()
    return data[: data.rfind(b"\n") + 1]


def check_completed(out, kept: bytes) -> None:
    """Every case has one row, all are ok, and what was finished is as it was."""
    rows = read_rows(out)
    assert (out / RESULTS_FILE).read_bytes().startswith(kept)
    assert {row["status"] for row in rows} == {"ok"}
    assert (
        len({json.dumps(BenchmarkCase.from_dict(row).as_dict()) for row in rows})
        == len(rows)
        == CASES
    )
    assert read_run(out)["finished"]


def test_ctrl_c_keeps_finished_rows_and_names_the_way_on(tmp_path):
    out = tmp_path / "a folder whose name needs quotes and is longer than a terminal is wide" / "r"
    process = bench(out)
    workers = wait_for_rows(process, out)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"flashmix bench --resume '{out}'" in printed
    assert "Traceback" not in errors
    assert workers
    assert not any(map(alive, workers))
    kept = (out / RESULTS_FILE).read_bytes()
    assert kept.endswith(b"\n")
    assert 4 <= kept.count(b"\n") < CASES
    assert not read_run(out)["finished"]
    done = run_cli("bench", "--resume", out)
    assert done.returncode == 0, done.stderr
    assert str(out / "report.md") in done.stdout
    check_completed(out, kept)


def test_ctrl_c_before_anything_was_measured_names_no_way_on(tmp_path):
    process = bench(tmp_path / "run")
    wait_until(lambda: (tmp_path / "run").exists() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    named = "--resume" in printed
    assert named == (tmp_path / "run" / RUN_FILE).exists()


def test_the_death_of_the_parent_ends_the_worker_and_keeps_finished_rows(tmp_path):
    out = tmp_path / "run"
    process = bench(out)
    workers = wait_for_rows(process, out)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert workers
    wait_until(lambda: not any(map(alive, workers)))
    kept = whole_lines(out)
    assert 4 <= kept.count(b"\n") < CASES
    run_suite(None, Grid(), out, resume=True)
    check_completed(out, kept)


def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_finished_rows(tmp_path):
    out = tmp_path / "run"
    # Room for run.json and a few rows.
    limit = (6000, 6000)
    process = bench(out, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    workers = wait_for_rows(process, out, fewest=1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert f"cannot write to {out}" in errors
    assert "--resume" in errors
    assert not any(map(alive, workers))
    kept = whole_lines(out)
    assert 1 <= kept.count(b"\n") < CASES
    run_suite(None, Grid(), out, resume=True)
    check_completed(out, kept)


def test_a_second_run_into_one_folder_is_refused(tmp_path):
    with RunFolder.hold(tmp_path) as held:
        held.write_run(make_run(grid={"directions": ["forward"]}))
        second = run_cli("bench", "--resume", tmp_path)
        assert second.returncode == 1
        assert f"another run is writing to {tmp_path}" in second.stderr
        fresh = run_cli("bench", "quick", "--device", "cpu", "--out", tmp_path)
        assert fresh.returncode == 2
        assert "already holds a run" in fresh.stderr
    assert read_rows(tmp_path) == []

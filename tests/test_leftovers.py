"""A run that was killed, or found no room to write, at any point goes on to the same folder."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from bench_helpers import CEILINGS, make_row
from flashmix._files import write_whole
from flashmix.bench import Grid, machine, process, read_run, run_suite
from flashmix.bench import runner as runner_module
from flashmix.bench.store import RUN_FILE, SEARCH_FILE, RunFolder, read_rows
from flashmix.bench.training import Experiment, experiment, run_experiment, running
from flashmix.bench.training import jobs as jobs_module
from flashmix.bench.training.jobs import LOGITS_FILE
from flashmix.bench.worker import set_threads, status_of
from flashmix.cli.main import main
from flashmix.errors import ArgumentError, FlashmixError
from flashmix.report import write as report_write
from flashmix.report.charts import Chart
from flashmix.report.html import page as report_html
from flashmix.tasks import checkpoint
from flashmix.tasks.finetuning import FinetuneConfig

CONFIG = FinetuneConfig(task="digits", model="bert-tiny", lr=1.0)
EXPERIMENT = Experiment(config=CONFIG, mixers=("fnet",), seeds=(0, 1), rates=(1.0, 2.0), lengths=())
SUITE = Grid(seq_lens=(16,), mixers=("fnet",), directions=("forward",))


def train(job, emit, stop):
    """Writes, and leaves, what a training does, and goes on from its state as one."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.safetensors"
    for step in range(int(state.read_text()) if state.exists() else 0, 2):
        write_whole(folder / f"best-{step}.safetensors", "weights")
        write_whole(state, str(step + 1))
        (folder / f"best-{step - 1}.safetensors").unlink(missing_ok=True)
    score = job["config"]["lr"] / (2 + 2 * job["seed"])
    epoch = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": score}
    result = {"status": "ok", "val_accuracy": score, "wall_seconds": 1.0, "history": [epoch]}
    result |= {"params": 1, "test_accuracy": score, "f1": score, "confusion": [[1]]}
    if not job.get("trial"):
        write_whole(folder / LOGITS_FILE, "logits")
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "model.safetensors").write_text("weights")
    return result


class Worker:
    """Does jobs in this process."""

    def __init__(self, *_, **__):
        pass

    def run(self, job, limit):
        try:
            yield {"result": jobs_module.KINDS[job["kind"]](job, None, None)}
        except OSError as error:
            yield {"result": {"status": status_of(error), "error": str(error)}}

    def stop(self):
        pass

    kill = stop


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Trainings and measurements that take no time, on a machine that stays the same."""
    here = {"cpu": "a processor", "python": "3", "commit": None, "code": "c", "packages": {}}
    monkeypatch.setattr(machine, "describe", lambda device: here)
    monkeypatch.setattr(machine, "ceilings", lambda *_: CEILINGS)
    monkeypatch.setattr(running, "Worker", Worker)
    monkeypatch.setitem(jobs_module.KINDS, "finetune", train)
    monkeypatch.setattr(
        experiment,
        "write_examples",
        lambda config, out: write_whole(out / "examples.json", str(len(read_rows(out)))),
    )

    def measure(cases, *_):
        for case in cases:
            yield case, "done", make_row(case.label, case.seq_len) | case.as_dict()

    monkeypatch.setattr(runner_module, "_measure", measure)


def finetune(out, resume):
    asked = None if resume else EXPERIMENT
    run_experiment(asked, out, kind="finetune", resume=resume, threads=1)


def bench(out, resume):
    run_suite(None if resume else "quick", SUITE, out, threads=1, resume=resume)


COMMANDS = {"finetune": finetune, "bench": bench}


def go_on(run, out):
    """What a user does: resume where there is a run, else give the command again."""
    run(out, resume=(out / RUN_FILE).exists())


def found(out):
    """The files of a run, and its rows without the order in which they ended."""
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    rows = {name: read_rows(out, name) for name in ("results.jsonl", SEARCH_FILE, "repeats.jsonl")}
    return files, rows, bool(read_run(out)["finished"])


EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")


def killed_at(point, act, folder):
    """Do ``act`` in a process that dies before its operation number ``point`` on files there."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = 0

    def operation():
        nonlocal done
        done += 1
        if done == point:
            os._exit(9)

    def watch(event, arguments):
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            operation()

    sync = os.fsync

    def watched_sync(file):
        sync(file)
        operation()

    try:
        sys.addaudithook(watch)
        os.fsync = watched_sync
        act()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_killed_before_any_operation_on_its_files_goes_on_to_the_same_folder(
    tmp_path, command
):
    run = COMMANDS[command]
    run(tmp_path / "alone", resume=False)
    expected = found(tmp_path / "alone")
    point, out = 0, tmp_path / "killed"
    while True:
        point += 1
        code = killed_at(point, lambda: run(out, resume=False), out)
        if code == 0:
            break
        assert code == 9
        go_on(run, out)
        assert found(out) == expected, f"killed before operation {point}"
        shutil.rmtree(out)
    assert found(out) == expected
    assert point > {"bench": 12, "finetune": 50}[command]


def test_a_second_kill_while_a_run_goes_on_changes_nothing_either(tmp_path):
    finetune(tmp_path / "alone", resume=False)
    expected, out = found(tmp_path / "alone"), tmp_path / "killed"
    for point in range(2, 60, 9):
        killed_at(point, lambda: finetune(out, resume=False), out)
        killed_at(point // 2, lambda: go_on(finetune, out), out)
        go_on(finetune, out)
        assert found(out) == expected
        shutil.rmtree(out)


def test_what_a_finished_training_no_longer_needs_is_removed_though_all_is_done(tmp_path):
    finetune(tmp_path, resume=False)
    expected = found(tmp_path)
    for name in ("state.safetensors", "best-3.safetensors", ".state.safetensors.abcd1234"):
        (tmp_path / "fnet" / "seed-1" / name).write_text("left by a kill")
    finetune(tmp_path, resume=True)
    assert found(tmp_path) == expected


def test_only_what_a_writer_left_is_removed(tmp_path):
    kept = [".hidden", ".git/config", "report.md", ".run.json.swp", "model.abcd1234"]
    for name in kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / ".run.json.abcd_123").write_text("left")
    with RunFolder.hold(tmp_path):
        pass
    assert all((tmp_path / name).exists() for name in kept)
    assert not (tmp_path / ".run.json.abcd_123").exists()


# A full disk


class Disk:
    """A disk that is full after so many syncs."""

    def __init__(self, monkeypatch):
        self.room, self._sync = None, os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, file):
        if self.room is not None:
            self.room -= 1
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._sync(file)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_full_at_any_write_ends_with_advice_that_works(
    tmp_path, monkeypatch, command
):
    run = COMMANDS[command]
    disk = Disk(monkeypatch)
    run(tmp_path / "alone", resume=False)
    expected = found(tmp_path / "alone")
    writes, out = -1, tmp_path / "run"
    while True:
        writes += 1
        disk.room = writes
        try:
            run(out, resume=False)
        except FlashmixError as error:
            said = str(error)
        else:
            break
        disk.room = None
        begun = (out / RUN_FILE).exists()
        assert f"cannot write to {out}: " in said
        assert "No space left" in said
        advice = f"flashmix {command} --resume {out}" if begun else "run the same command again"
        assert said.endswith(advice)
        assert begun == (writes > 0)
        if command == "finetune":
            assert {row["status"] for row in read_rows(out)} <= {"ok"}
        go_on(run, out)
        assert found(out) == expected, f"full after {writes} writes"
        shutil.rmtree(out)
    assert writes > {"bench": 4, "finetune": 20}[command]


@pytest.mark.parametrize("command", ["report", "bench"])
def test_no_room_for_a_report_keeps_the_rows_and_says_how_to_write_it(
    tmp_path, monkeypatch, capsys, command
):
    pictures = [f"figures/chart{end}" for end in (".svg", "-dark.svg", ".png")]
    monkeypatch.setattr(report_html, "page", lambda runs: "page")
    monkeypatch.setattr(
        report_write, "charts", lambda rows: [Chart("chart", "title", "text", {}, ["fnet"])]
    )
    monkeypatch.setattr(report_write, "picture_spec", lambda *_: {})
    monkeypatch.setattr(report_write, "to_svg", lambda _: "<svg/>")
    monkeypatch.setattr(report_write, "to_png", lambda _: b"png")
    out = tmp_path / "run"
    bench(out, resume=False)
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    disk = Disk(monkeypatch)
    asked = {"report": ["report", str(out)], "bench": ["bench", "--resume", str(out)]}[command]
    done = 1 if command == "bench" else 0  # syncs of the run itself, which has ended
    for room, name in enumerate(["report.md", "report.html", *pictures]):
        disk.room = done + room
        assert main(asked) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"flashmix: cannot write {out / name}: No space left on device.")
        assert said.endswith(
            f"The measured rows are kept; once there is room: flashmix report {out}"
        )
        assert not (out / name).exists()
        assert not list(out.rglob(".*"))
        assert (out / "results.jsonl").read_bytes() == kept["results.jsonl"]
    disk.room = None
    assert main(["report", str(out)]) == 0
    assert all((out / name).exists() for name in pictures)


def test_no_room_for_the_state_of_a_training_is_told_as_such(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    disk.room = 0
    with pytest.raises(OSError, match="No space") as full:
        checkpoint.save_weights(tmp_path / "best.safetensors", torch.nn.Linear(2, 2))
    assert status_of(full.value) == "full"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with (
        pytest.raises(FlashmixError, match=r"No space left on device\. Choose another --out"),
        RunFolder.hold(tmp_path / "run"),
    ):
        pass


# Another machine, other code


def stopped_run(command, tmp_path, monkeypatch):
    """A run that was killed in the middle."""
    run = COMMANDS[command]
    assert killed_at(12, lambda: run(tmp_path, resume=False), tmp_path) == 9
    assert (tmp_path / RUN_FILE).exists()
    return run


CHANGES = {
    "cpu": ({"cpu": "another"}, "cpu a processor, here another"),
    "python": ({"python": "4"}, "python 3, here 4"),
    "gpu": ({"gpu": "NVIDIA H200"}, "gpu None, here NVIDIA H200"),
    "torch": ({"packages": {"torch": "9"}}, "torch None, here 9"),
    "code": ({"code": "d", "commit": "e"}, r"code of flashmix c \(commit unknown\), here d"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_not_finished_by_another_machine_or_other_code(
    tmp_path, monkeypatch, command, change
):
    run = stopped_run(command, tmp_path, monkeypatch)
    before, here = sorted(tmp_path.rglob("*")), machine.describe("cpu")
    fields, words = CHANGES[change]
    with monkeypatch.context() as patch:
        patch.setattr(machine, "describe", lambda device: {**here, **fields})
        with pytest.raises(ArgumentError, match=f"was begun with {words}.*new run"):
            run(tmp_path, resume=True)
    assert len(read_rows(tmp_path)) == 0 or sorted(tmp_path.rglob("*")) == before
    run(tmp_path, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "describe", lambda device: {**here, **fields})
        run(tmp_path, resume=True)  # nothing is left that would be mixed


def test_a_run_is_not_finished_by_another_number_of_processes(tmp_path, monkeypatch):
    run = stopped_run("finetune", tmp_path, monkeypatch)
    content = (tmp_path / RUN_FILE).read_text()
    (tmp_path / RUN_FILE).write_text(content.replace('"processes": 1', '"processes": 2'))
    with pytest.raises(ArgumentError, match="processes 2, here 1"):
        run(tmp_path, resume=True)


def test_a_worker_that_imports_another_flashmix_is_refused(tmp_path, monkeypatch):
    """Which the folder that a command is started in can bring about."""
    worker = tmp_path / "worker"
    worker.write_text(
        '#!/bin/sh\necho \'{"event": "ready", "package": "/other/flashmix"}\'; read x'
    )
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    with pytest.raises(
        FlashmixError, match=r"imports flashmix from /other/flashmix, .* PYTHONPATH"
    ):
        process.Worker()


def test_threads_that_are_not_in_effect_are_refused(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    with pytest.raises(FlashmixError, match=r"3 threads were asked for, PyTorch uses \d"):
        set_threads(3)

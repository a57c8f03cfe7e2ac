"""Runs a suite: groups of compared cases in worker processes, rows stored as they come."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashmix.bench import machine
from flashmix.bench.case import BenchmarkCase, Suite
from flashmix.bench.process import Worker, WorkerDiedError
from flashmix.bench.ranks.launch import RankWorker, check_ranks
from flashmix.bench.repeat import key, to_repeat
from flashmix.bench.store import REPEATS_FILE, RUN_FILE, Row, RunFolder, read_rows, read_run
from flashmix.bench.suites import SUITES, Grid, build_suite
from flashmix.errors import ArgumentError
from flashmix.ops._cpu import library
from flashmix.tasks.distributed import launched


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a listener hears: how far the run is, and what it does now."""

    done: int
    total: int
    now: str
    row: Row | None = None


COMMANDS = ("flashmix", "__main__.py")
"""Names under which the command line runs; a notebook's or a script's arguments are its own."""

Listener = Callable[[Progress], None]


def run_suite(
    name: str | None,
    grid: Grid,
    out: Path,
    *,
    threads: int | None = None,
    time_limit: float = 60.0,
    resume: bool = False,
    listener: Listener = lambda progress: None,
) -> Path:
    """Run a suite into the folder ``out`` and return that folder.

    Args:
        name: a name of SUITES; may be None when resuming.
        grid: what to change of it; read from the folder when resuming.
        out: the run's folder; must hold no results unless ``resume``.
        threads: of PyTorch in the workers; PyTorch's own choice when None.
        time_limit: seconds without progress after which a case counts as hung.
        resume: go on with the run in ``out``, with its own suite, grid, threads and time limit,
            and repeat no finished case.
        listener: hears progress.

    Raises:
        ArgumentError: an unknown suite, or a folder that does not fit.
        FlashmixError: the folder is in use or cannot be written.
    """
    if resume:
        run = read_run(out)
        if name not in (None, run["suite"]):
            raise ArgumentError(f"{out} holds a run of suite {run['suite']!r}, not of {name!r}")
        name, threads, time_limit = run["suite"], run["threads"], run["time_limit_s"]
        grid = Grid.from_dict(run["grid"])
    elif name is None:
        raise ArgumentError(f"name a suite: {', '.join(SUITES)}")
    elif (out / RUN_FILE).exists() or read_rows(out):
        raise ArgumentError(f"{out} already holds a run; pass --resume {out} to go on with it")
    suite = build_suite(name, grid)
    if grid.device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("device 'cuda' was asked for, but PyTorch sees no GPU; use 'cpu'")
    if size := _ranks(suite.cases):
        check_ranks(size, grid.device)
        grid = dataclasses.replace(grid, ranks=size)
    if grid.device == "cpu":
        library.missing()  # builds the native kernels before anything is timed
    threads = threads or torch.get_num_threads()
    with RunFolder.hold(out) as folder:
        if not resume:
            torch.set_num_threads(threads)
            listener(Progress(done=0, total=len(suite.cases), now="measuring the machine's limits"))
            run = _describe(suite, grid, threads, time_limit)
            folder.write_run(run)
        todo = _unfinished(suite.cases, read_rows(out))
        if resume and (todo or not run["finished"]):
            machine.check_same(run, grid.device, out)
        done, total = len(suite.cases) - len(todo), len(suite.cases)
        settings = {
            "min_samples": suite.min_samples,
            "max_samples": suite.max_samples,
            "seconds_per_case": suite.seconds_per_case,
            "max_seconds_per_case": suite.max_seconds_per_case,
        }
        limit = max(time_limit, suite.case_seconds_limit)
        for case, now, row in _measure(todo, threads, settings, limit):
            if row is not None:
                folder.append(row)
                done += 1
            listener(Progress(done=done, total=total, now=f"{_where(case)}: {now}", row=row))
        again = to_repeat(read_rows(out))
        todo = _unfinished(again, read_rows(out, REPEATS_FILE))
        done, total = total + len(again) - len(todo), total + len(again)
        for case, now, row in _measure(todo, threads, settings, limit):
            if row is not None:
                folder.append(row, REPEATS_FILE)
                done += 1
            listener(Progress(done=done, total=total, now=f"again: {_where(case)}: {now}"))
        run["finished"] = _now()
        folder.write_run(run)
    return out


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _describe(suite: Suite, grid: Grid, threads: int, time_limit: float) -> dict[str, Any]:
    dtype = next(case.dtype for case in suite.cases)
    return {
        "suite": suite.name,
        "command": _command(suite, grid),
        "notes": list(suite.notes),
        "grid": dataclasses.asdict(grid),
        "threads": threads,
        "seed": grid.seed,
        "time_limit_s": time_limit,
        "started": _now(),
        "finished": None,
        "machine": machine.describe(grid.device),
        "ceilings": machine.ceilings(grid.device, dtype),
    }


def _command(suite: Suite, grid: Grid) -> str:
    """What was typed, or the call from Python."""
    if Path(sys.argv[0]).name in COMMANDS:
        start = []
        if launched():
            start = ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], "-m"]
        return shlex.join([*start, "flashmix", *sys.argv[1:]])
    changed = ", ".join(
        f"{one.name}={value!r}"
        for one in dataclasses.fields(grid)
        if (value := getattr(grid, one.name)) != one.default
    )
    return f"flashmix.bench.measure({suite.name!r}, Grid({changed}))"


def _unfinished(cases: Sequence[BenchmarkCase], rows: Sequence[Row]) -> list[BenchmarkCase]:
    """The cases without a row."""
    finished = {key(row) for row in rows}
    return [case for case in cases if key(case.as_dict()) not in finished]


def _where(case: BenchmarkCase) -> str:
    direction = case.direction.replace("_", " + ")
    model = "".join(f"{one}, " for one in (case.model, case.mode) if case.model)
    padded = ", padded" if case.lengths != "full" else ""
    return f"{model}{direction}, N = {case.seq_len}{padded}, {case.label}"


def _measure(
    cases: list[BenchmarkCase], threads: int, settings: dict[str, Any], time_limit: float
) -> Iterator[tuple[BenchmarkCase, str, Row | None]]:
    """Yield (case, what is going on, its row once there is one)."""
    worker: Worker | None = None
    size, among_ranks = _ranks(cases), False
    try:
        for _, members in itertools.groupby(cases, key=lambda case: case.group):
            left = list(members)
            if worker is not None and among_ranks != (left[0].ranks is not None):
                worker.kill()
                worker = None
            among_ranks = left[0].ranks is not None
            while left:
                worker = worker or (RankWorker(size) if among_ranks else Worker())
                current = 0
                finished = set()
                job = {
                    "cases": [case.as_dict() for case in left],
                    "threads": threads,
                    "settings": settings,
                }
                try:
                    for event in worker.run(job, time_limit):
                        current = event["index"]
                        if event["event"] == "done":
                            finished.add(current)
                            yield left[current], "done", _row(left[current], event["result"])
                        else:
                            yield left[current], event["what"], None
                except WorkerDiedError as death:
                    worker.kill()
                    worker = None
                    if current not in finished:
                        finished.add(current)
                        result = {"status": death.status, "error": death.reason}
                        yield left[current], death.status, _row(left[current], result)
                left = [case for index, case in enumerate(left) if index not in finished]
    finally:
        if worker is not None:
            worker.kill()


def _ranks(cases: Sequence[BenchmarkCase]) -> int:
    """The most ranks of a case; 0 where none is measured among ranks."""
    return max((case.ranks or 0 for case in cases), default=0)


def _row(case: BenchmarkCase, result: dict[str, Any]) -> Row:
    named = {"mixers": case.mixer} if case.subject == "model" else {}
    return {**case.as_dict(), "label": case.label, **named, **result}

"""The process that measures: ``python -m flashmix.bench.worker``.

It reads a job a line on standard input (cases that are compared, and settings) and writes an
event a line on standard output. What it says last tells its parent where it was when it died.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from flashmix._clock import watch
from flashmix.bench import encoders, memory, stats
from flashmix.bench.actions import prepare, ran_fields
from flashmix.bench.case import COMPILED, COPY, BenchmarkCase
from flashmix.bench.process import package
from flashmix.bench.profiling.engines import OTHER_ENGINES
from flashmix.bench.properties import measure_properties
from flashmix.bench.store import FULL
from flashmix.bench.timing import Clock, WallClock, clock, interleave
from flashmix.errors import FlashmixError
from flashmix.ops.dispatch import recorded_choices
from flashmix.tasks.digits import train_digits
from flashmix.tasks.loop import DivergedError

Emit = Callable[..., None]


def main() -> None:
    """Serve measurements."""
    serve(_measure_job)


def serve(run: Callable[[dict[str, Any], Emit], None], **ready: Any) -> None:
    """Serve jobs until standard input closes; ``ready`` goes with the first event."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    emit = Events(os.dup(1))
    os.dup2(2, 1)  # whatever a library prints stays out of the events
    follow_parent()
    emit("ready", package=package(), **ready)
    for line in sys.stdin:
        run(json.loads(line), emit)
        emit("idle")


class Events:
    """Writes events, a line each, to a pipe that its reader may not empty, being stopped.

    Another word of the case that is being done is then dropped: a training must not wait for it.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe, self._index = pipe, None
        self._lock = threading.Lock()

    def __call__(self, event: str, **fields: Any) -> None:
        """Write an event."""
        line = (json.dumps({"event": event, **fields}) + "\n").encode()
        with self._lock:
            again = event == "doing" and fields["index"] == self._index
            self._index = fields.get("index")
            os.set_blocking(self._pipe, not again)
            with contextlib.suppress(BlockingIOError):  # so short a line is written whole or not
                while line:
                    line = line[os.write(self._pipe, line) :]


def _measure_job(job: dict[str, Any], emit: Emit) -> None:
    cases = [BenchmarkCase.from_dict(fields) for fields in job["cases"]]
    set_threads(job["threads"])
    if cases[0].device == "cpu":
        limit_memory()
    measure(cases, job["settings"], emit)


def set_threads(count: int) -> None:
    """Let PyTorch use so many threads, or raise: a row with others would say a false number."""
    torch.set_num_threads(count)
    if torch.get_num_threads() != count:
        raise FlashmixError(
            f"{count} threads were asked for, PyTorch uses {torch.get_num_threads()}"
        )


def follow_parent() -> None:
    """End this process when its parent is gone, even in the middle of a case."""
    parent = os.getppid()

    def follow() -> None:
        watch(lambda: os.getppid() == parent)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def limit_memory(share: float = 0.9) -> None:
    """Let an allocation beyond ``share`` of the free memory fail here, not the system kill us."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + int(share * memory.available_bytes())
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def measure(cases: list[BenchmarkCase], settings: dict[str, Any], emit: Emit) -> None:
    """Measure cases that are compared, and emit a "done" event with the results of each."""
    if cases[0].direction == "train":
        for index, case in enumerate(cases):
            emit("doing", index=index, what="training")
            with reporting(emit, index):
                emit("done", index=index, result=_train(case, emit, index))
        return
    if cases[0].direction == "properties":
        for index, case in enumerate(cases):
            emit("doing", index=index, what="properties")
            with reporting(emit, index), recorded_choices() as choices:
                found = {"properties": measure_properties(case), **ran_fields(choices)}
                emit("done", index=index, result={"status": "ok", **found})
        return
    results: dict[int, dict[str, Any]] = {}
    clocks: dict[int, Clock] = {}
    if any(case.mode in COMPILED for case in cases):
        encoders.prepare_compiler()
    for index, case in enumerate(cases):
        emit("doing", index=index, what="warm-up and memory")
        with reporting(emit, index):
            prepared = prepare(case)
            memory.reset_peak_rss()
            if case.mode in OTHER_ENGINES:  # their memory holds no tensors of PyTorch
                prepared.memory_action()
                peak = None
            else:
                peak = memory.peak_mb(prepared.memory_action, case.device)
            results[index] = {
                "params": prepared.params,
                "output_shape": prepared.output_shape,
                "peak_mb": peak,
                "rss_mb": memory.peak_rss_mb(),
                **prepared.ran,
            }
            if case.subject == "model":
                results[index]["tokens"] = prepared.tokens
            if prepared.parts is not None and (shares := prepared.parts()):
                results[index]["parts"] = shares
            clocks[index] = clock_of(case, prepared.action)
    time_in_turn(cases, clocks, results, settings, emit)


def clock_of(case: BenchmarkCase, action: Callable[[], object]) -> Clock:
    """The clock of a case: a model's time is what its caller waits, Python's part included."""
    if case.subject == "model" and case.device == "cuda":
        return WallClock(action)
    return clock(action, case.device)


def time_in_turn(
    cases: list[BenchmarkCase],
    clocks: Mapping[int, Clock],
    results: dict[int, dict[str, Any]],
    settings: dict[str, Any],
    emit: Emit,
) -> None:
    """Time the cases that have a clock in turn, and emit what was measured of each."""
    indices = list(clocks)
    samples: dict[int, list[float]] = {index: [] for index in indices}
    current = 0

    def before(position: int) -> None:
        nonlocal current
        current = indices[position]
        emit("doing", index=current, what="timing")

    try:
        for position, seconds in interleave(
            list(clocks.values()),
            min_samples=settings["min_samples"],
            max_samples=settings["max_samples"],
            seconds_each=settings["seconds_per_case"],
            max_seconds_each=settings["max_seconds_per_case"],
            before=before,
        ):
            samples[indices[position]].append(seconds * 1e3)
    except Exception as error:
        # The others of the group are unfinished; the parent sends them again without this one.
        _report(error, emit, current)
        return
    floor = [samples[i] for i in indices if cases[i].mixer == COPY]
    for index in indices:
        if floor:
            results[index]["floor_ms"] = statistics.median(floor[0])
        if host := getattr(clocks[index], "host_seconds", None):
            results[index]["host_ms"] = 1e3 * host
        if tokens := results[index].pop("tokens", None):
            seconds = statistics.median(samples[index]) / 1e3
            results[index]["tokens_per_s"] = tokens / seconds
        timed = {"samples_ms": samples[index], **stats.summary(samples[index])}
        emit("done", index=index, result={"status": "ok", **timed, **results[index]})


def _train(case: BenchmarkCase, emit: Emit, index: int) -> dict[str, Any]:
    if case.device == "cpu":
        torch.set_num_threads(1)  # threads wait for each other at every small step
    with recorded_choices() as choices:
        outcome = train_digits(
            case.mixer,
            seconds=case.seconds,
            seed=case.seed,
            dim=case.dim,
            num_heads=case.num_heads,
            batch_size=case.batch,
            device=case.device,
            on_step=lambda: emit("doing", index=index, what="training"),
        )
    return {"status": "ok", **outcome, **ran_fields(choices)}


@contextlib.contextmanager
def reporting(emit: Emit, index: int) -> Any:
    """Turn an exception into the status of its case."""
    try:
        yield
    except Exception as error:
        _report(error, emit, index)


def _report(error: Exception, emit: Emit, index: int) -> None:
    """Emit the status that ``error`` gives a case; end the process if the GPU is past use."""
    status = status_of(error)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    emit("done", index=index, result={"status": status, "error": text[:500]})
    if torch.cuda.is_initialized():
        try:
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)  # an error that stays with the device; a fresh process may use it again


def status_of(error: Exception) -> str:
    """The status that an exception gives its case: "oom", "diverged", "full" or "error"."""
    if (isinstance(error, OSError) and error.errno in FULL) or "No space left" in str(error):
        return "full"
    if isinstance(error, DivergedError):
        return "diverged"
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )
    return "oom" if out_of_memory else "error"


if __name__ == "__main__":
    main()

"""Does a list of jobs: in worker processes, several at a time, or together with other ranks."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch

from flashmix.bench.process import Worker, WorkerDiedError
from flashmix.bench.runner import Listener, Progress
from flashmix.bench.store import Row
from flashmix.bench.training.jobs import Job, describe, execute
from flashmix.bench.worker import Emit
from flashmix.tasks import distributed
from flashmix.tasks.loop import DivergedError

VISIBLE = "CUDA_VISIBLE_DEVICES"
WORKER = "flashmix.bench.training.worker"
SILENCE_LIMIT = 6 * 3600.0
STOP_LIMIT = 60.0
Results = Iterator[tuple[Job, dict[str, Any]]]


def together(jobs: list[Job], listener: Listener) -> Results:
    """Do jobs one after the other, with the other processes that torchrun started.

    Those follow by asking :func:`flashmix.tasks.distributed.from_first` for the next job, until it
    is None.
    """
    board = _Board(jobs, listener)
    for index, job in enumerate(jobs):
        distributed.from_first(job)

        def emit(event: str, place: int = index, **fields: Any) -> None:
            board.say(place, fields)

        torch.set_num_threads(job["threads"])
        result = execute_with_others(job, emit)
        board.done(index, result)
        yield job, result


def execute_with_others(job: Job, emit: Emit) -> dict[str, Any]:
    """Do a job with the other ranks, all of which call this; a loss diverges on all of them."""
    try:
        return execute(job, emit, lambda: False)
    except DivergedError as error:
        return {"status": "diverged", "error": str(error)}


def in_workers(jobs: list[Job], listener: Listener, at_once: int = 1) -> Results:
    """Do jobs in worker processes, spread over the GPUs; each job with its result, as they end."""
    return _Workers(jobs, listener, at_once).results()


class _Workers:
    """Jobs done by worker processes, ``at_once`` of them at a time."""

    def __init__(self, jobs: list[Job], listener: Listener, at_once: int) -> None:
        self._jobs, self._listener, self._at_once = jobs, listener, at_once
        self._waiting = queue.SimpleQueue[int]()
        self._heard = queue.SimpleQueue[tuple[int | None, dict[str, Any]]]()
        self._workers: list[Worker] = []
        self._ending = False

    def results(self) -> Results:
        """Each job with its result, as they end."""
        for place in range(len(self._jobs)):
            self._waiting.put(place)
        board = _Board(self._jobs, self._listener)
        threads = [
            threading.Thread(target=self._serve, args=[environment], daemon=True)
            for environment in _environments(min(self._at_once, len(self._jobs)))
        ]
        for thread in threads:
            thread.start()
        left = len(self._jobs)
        try:
            while left:
                index, event = self._heard.get()
                if index is None:
                    raise event["error"]
                if "result" in event:
                    left -= 1
                    board.done(index, event["result"])
                    yield self._jobs[index], event["result"]
                else:
                    board.say(index, event)
        finally:
            self._end(threads)

    def _serve(self, environment: dict[str, str]) -> None:
        """Do jobs that wait in one worker process, a new one after each that died."""
        worker: Worker | None = None
        try:
            while not self._ending:
                try:
                    job = self._waiting.get_nowait()
                except queue.Empty:
                    return
                if worker is None:
                    worker = Worker(WORKER, environment=environment)
                    self._workers.append(worker)
                try:
                    for event in worker.run(self._jobs[job], SILENCE_LIMIT):
                        self._heard.put((job, event))
                except WorkerDiedError as death:
                    self._workers.remove(worker)
                    worker.kill()
                    worker = None
                    if not self._ending:
                        failed = {"status": death.status, "error": death.reason}
                        self._heard.put((job, {"result": failed}))
        except Exception as error:
            self._heard.put((None, {"error": error}))

    def _end(self, threads: list[threading.Thread]) -> None:
        """Let what is in training save its state, then end the processes."""
        self._ending = True
        for worker in list(self._workers):
            worker.stop()
        for thread in threads:
            thread.join(STOP_LIMIT)
        for worker in list(self._workers):
            worker.kill()


def _environments(workers: int) -> list[dict[str, str]]:
    """What each worker's environment says besides ours: its own GPU, where there are several."""
    count = torch.cuda.device_count()
    if count < 2:
        return [{}] * workers
    named = os.environ.get(VISIBLE)
    names = named.split(",") if named else [str(index) for index in range(count)]
    return [{VISIBLE: names[index % len(names)]} for index in range(workers)]


class _Board:
    """Sums up jobs for a listener: one bar of all jobs, in thousandths of a job."""

    UNIT = 1000

    def __init__(self, jobs: list[Job], listener: Listener) -> None:
        self._jobs, self._listener = jobs, listener
        self._shares = [0.0] * len(jobs)

    def say(self, index: int, event: dict[str, Any]) -> None:
        """Pass on what a job does."""
        if event.get("steps"):
            self._shares[index] = min(1.0, event["step"] / event["steps"])
        self._tell(index, event.get("what", ""), None)

    def done(self, index: int, result: dict[str, Any]) -> None:
        """Pass on a job's end."""
        self._shares[index] = 1.0
        self._tell(index, outcome(result), result)

    def _tell(self, index: int, what: str, row: Row | None) -> None:
        self._listener(
            Progress(
                done=round(self.UNIT * sum(self._shares)),
                total=self.UNIT * len(self._jobs),
                now=f"{describe(self._jobs[index])}: {what}",
                row=row,
            )
        )


def outcome(result: dict[str, Any]) -> str:
    """A result in a few words."""
    if result.get("status", "ok") != "ok":
        return f"{result['status']}: {result.get('error', '')}"
    if "test_accuracy" in result:
        return f"{100 * result['test_accuracy']:.2f} % of the test right"
    if "val_loss" in result:
        return f"validation loss {result['val_loss']:.3f}"
    if "val_accuracy" in result:
        return f"{100 * result['val_accuracy']:.2f} % of validation right"
    return "measured"

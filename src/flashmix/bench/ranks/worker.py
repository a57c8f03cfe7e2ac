"""The processes that measure across ranks: ``python -m flashmix.bench.ranks.worker``.

The first rank serves the runner as :mod:`flashmix.bench.worker` does, and hosts a store; through
it the other ranks get their orders, and every rank says why it failed. A failure across ranks ends
them all: what a broken group still waits for is not known. The runner starts fresh ones.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.device_mesh import DeviceMesh

from flashmix.bench import memory
from flashmix.bench.actions import Prepared, prepare
from flashmix.bench.case import BenchmarkCase
from flashmix.bench.ranks.subject import Subject
from flashmix.bench.timing import WallClock
from flashmix.bench.worker import (
    Emit,
    follow_parent,
    limit_memory,
    reporting,
    serve,
    set_threads,
    status_of,
    time_in_turn,
)
from flashmix.errors import ParallelError

FOREVER = timedelta(days=30)
FAILED = "failed"
FAILURE_GRACE_SECONDS = 1.0
"""How long a rank that lost the others waits for the reason of the one that failed."""


def main() -> None:
    """Be the first rank (SIZE HOST), or another one (SIZE HOST:PORT RANK)."""
    size, address = int(sys.argv[1]), sys.argv[2]
    if len(sys.argv) == 3:
        _lead(size, address)
    else:
        _follow(size, address, int(sys.argv[3]))


class Team:
    """The ranks, seen from one of them.

    Attributes:
        rank, size: of the process, and their number.
        subjects: by the place of their case in the job.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.cases: list[BenchmarkCase] = []
        self.subjects: dict[int, Subject] = {}
        self._orders = 0
        self._meshes: dict[int, DeviceMesh] = {}

    def order(self, do: str, *arguments: Any) -> Any:
        """Have every rank, this first one too, call the method ``do``; return this one's answer."""
        self.store.set(f"order/{self._orders}", json.dumps([do, *arguments]))
        self._orders += 1
        return getattr(self, do)(*arguments)

    def obey(self) -> None:
        """Do what the first rank orders, one thing after the other."""
        while True:
            key = f"order/{self._orders}"
            do, *arguments = json.loads(self.store.get(key))
            self._orders += 1
            getattr(self, do)(*arguments)

    def begin(self, job: dict[str, Any]) -> None:
        """Take a job's cases, and let go of those before."""
        self.cases = [BenchmarkCase.from_dict(fields) for fields in job["cases"]]
        self.subjects.clear()
        set_threads(max(1, job["threads"] // self.size))
        if self.cases[0].device == "cpu":
            limit_memory(0.9 / self.size)
        else:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.rank)))
            torch.cuda.empty_cache()

    def build(self, index: int) -> None:
        """Prepare a case over its ranks, and call it once."""
        ranks = self.cases[index].ranks
        assert ranks is not None
        mesh = self._mesh(ranks)
        if self.rank < ranks:
            self.subjects[index] = Subject(self.cases[index], mesh)

    def ask(self, index: int, what: str, *arguments: Any) -> Any:
        """A method of a case's subject, on its ranks."""
        if index in self.subjects:
            return getattr(self.subjects[index], what)(*arguments)
        return None

    def _mesh(self, ranks: int) -> DeviceMesh:
        """The mesh of the first ``ranks``; every rank takes part in making it."""
        device = self.cases[0].device
        if not dist.is_initialized():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                store=PrefixStore("group", self.store),
                rank=self.rank,
                world_size=self.size,
            )
        if ranks not in self._meshes:
            self._meshes[ranks] = DeviceMesh(device, list(range(ranks)))
        return self._meshes[ranks]


def report_failure(store: Store, result: dict[str, Any]) -> None:
    """Let the first rank know why a rank failed; the first reason that arrives stands."""
    store.compare_set(FAILED, "", json.dumps(result))


def connect(address: str) -> TCPStore:
    """A connection to the store that the first rank hosts."""
    host, _, port = address.rpartition(":")
    return TCPStore(host, int(port), is_master=False, timeout=FOREVER)


def _lead(size: int, host: str) -> None:
    store = TCPStore(host, 0, size, is_master=True, timeout=FOREVER, wait_for_workers=False)
    address = f"{host}:{store.port}"
    team = Team(store, 0, size)
    heard = _FailureWatch(connect(address))

    def run(job: dict[str, Any], emit: Emit) -> None:
        heard.emit = emit
        try:
            _measure(team, job, heard.say)
        except Exception as error:
            _give_up(team, error)

    serve(run, address=address)


class _FailureWatch:
    """Events to the runner, and the end of this process once a rank failed."""

    def __init__(self, store: Store) -> None:
        self.emit: Emit | None = None
        self._index = 0
        self._store = store
        threading.Thread(target=self._watch, daemon=True).start()

    def say(self, event: str, **fields: Any) -> None:
        """Emit an event, and remember which case it is about."""
        self._index = fields["index"]
        assert self.emit is not None
        self.emit(event, **fields)

    def _watch(self) -> None:
        self._store.wait([FAILED], FOREVER)
        result = json.loads(self._store.get(FAILED))
        if self.emit is not None:
            self.emit("done", index=self._index, result=result)
        os._exit(1)


def _follow(size: int, address: str, rank: int) -> None:
    follow_parent()
    store = connect(address)
    team = Team(store, rank, size)
    try:
        team.obey()
    except Exception as error:
        _give_up(team, error)
    os._exit(1)


def _give_up(team: Team, error: Exception) -> NoReturn:
    """Say why, and leave the end of all ranks to the first one's watch."""
    if isinstance(error, ParallelError) or "Connection" in str(error):
        time.sleep(FAILURE_GRACE_SECONDS)  # the reason is another rank's, which may tell it yet
    text = f"rank {team.rank} of {team.size}: {type(error).__name__}: {error}".splitlines()[0]
    report_failure(team.store, {"status": status_of(error), "error": text[:500]})
    threading.Event().wait()
    raise AssertionError


def _measure(team: Team, job: dict[str, Any], emit: Emit) -> None:
    """Measure the cases of a job: those of one rank here, the others together."""
    team.order("begin", job)
    results: dict[int, dict[str, Any]] = {}
    clocks: dict[int, Any] = {}
    for index, case in enumerate(team.cases):
        what = "capturing a CUDA graph" if case.graph else "warm-up and memory"
        emit("doing", index=index, what=what)
        if case.ranks == 1:
            with reporting(emit, index):
                prepared = prepare(case)
                results[index] = _of_one(prepared, case)
                clocks[index] = WallClock(prepared.action)
        else:
            team.order("build", index)
            results[index] = _of_all(team, index, emit)
            clocks[index] = _clock(team, index)
    time_in_turn(team.cases, clocks, results, job["settings"], emit)


def _subject(prepared: Prepared) -> dict[str, Any]:
    return {"params": prepared.params, "output_shape": prepared.output_shape, **prepared.ran}


def _of_one(prepared: Prepared, case: BenchmarkCase) -> dict[str, Any]:
    """What is measured of a case on one rank beside its time; nothing of a CUDA graph."""
    if case.graph:
        return _subject(prepared)
    memory.reset_peak_rss()
    peak = memory.peak_mb(prepared.memory_action, case.device)
    return {**_subject(prepared), "peak_mb": peak, "rss_mb": memory.peak_rss_mb()}


def _of_all(team: Team, index: int, emit: Emit) -> dict[str, Any]:
    """What is measured of a case across ranks beside its time; nothing of a CUDA graph."""
    case, found = team.cases[index], _subject(team.subjects[index].prepared)
    if case.graph:
        return found
    memory.reset_peak_rss()
    peaks = team.order("ask", index, "peaks")
    emit("doing", index=index, what="counting bytes sent")
    traffic = team.order("ask", index, "traffic")
    found |= {
        "peak_mb": max(peaks),
        "peak_mb_by_rank": peaks,
        "rss_mb": memory.peak_rss_mb(),
        **traffic,
    }
    if not case.weak and case.suite == "parallel":
        emit("doing", index=index, what="comparing with one device")
        found["relative_error"] = team.order("ask", index, "error")
    return found


def _clock(team: Team, index: int) -> Callable[[int], float]:
    """Seconds of calls on all ranks at once."""

    def seconds(calls: int) -> float:
        try:
            found: float = team.order("ask", index, "seconds", calls)
        except Exception as error:
            _give_up(team, error)
        return found

    return seconds


if __name__ == "__main__":
    main()

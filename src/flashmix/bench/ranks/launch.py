"""Starts the other ranks, on this machine or in the processes that torchrun started.

Under torchrun the first process runs the suite. Each of the other processes serves one rank, and
restarts it whenever the first rank restarts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Protocol

import torch
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from flashmix.bench.process import Worker, end_session
from flashmix.bench.ranks.worker import FOREVER, connect, report_failure
from flashmix.errors import ArgumentError
from flashmix.tasks.distributed import launched

MODULE = "flashmix.bench.ranks.worker"
END = "end"


class Followers(Protocol):
    """All ranks but the first."""

    def start(self, address: str) -> None:
        """Start the ranks; the first rank hosts its store at ``address``."""

    def end(self) -> None:
        """End the ranks."""


class RankWorker(Worker):
    """The worker process of the first of ``size`` ranks, and the owner of the others."""

    def __init__(self, size: int) -> None:
        self._followers = _followers(size)
        host = os.environ["MASTER_ADDR"] if launched() else "127.0.0.1"
        super().__init__(MODULE, str(size), host)
        self._followers.start(self.ready["address"])

    def kill(self) -> None:
        """End all ranks."""
        self._followers.end()
        super().kill()


def check_ranks(size: int, device: str) -> None:
    """Raise ArgumentError unless ``size`` ranks can be started here."""
    if launched():
        if size != int(os.environ["WORLD_SIZE"]):
            raise ArgumentError(
                f"--ranks {size} under torchrun with {os.environ['WORLD_SIZE']} processes; leave "
                "--ranks out, or start as many processes"
            )
    elif device == "cuda" and size > torch.cuda.device_count():
        raise ArgumentError(
            f"{size} ranks need as many GPUs, and this machine has {torch.cuda.device_count()}; "
            "pass --ranks, or use torchrun on several machines"
        )


def serve_rank() -> None:
    """Serve this process's rank until the run under torchrun ends."""
    store, here = _store(), LocalFollowers([int(os.environ["RANK"])], int(os.environ["WORLD_SIZE"]))
    generation = 1
    try:
        while (address := store.get(_key(generation)).decode()) != END:
            here.end()
            here.start(address)
            generation += 1
    finally:
        here.end()


def release_ranks() -> None:
    """Let the other processes under torchrun exit."""
    _announce(END)


class LocalFollowers:
    """Ranks that run as processes on this machine."""

    def __init__(self, ranks: list[int], size: int) -> None:
        self._ranks, self._size = ranks, size
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, address: str) -> None:
        """Start the processes, and report to the first rank when one of them dies."""
        for rank in self._ranks:
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(self._size), address, str(rank)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._processes.append(process)
            threading.Thread(target=self._watch, args=(process, rank, address), daemon=True).start()

    def end(self) -> None:
        """Kill the processes."""
        processes, self._processes = self._processes, []
        for process in processes:
            end_session(process)

    def _watch(self, process: subprocess.Popen[bytes], rank: int, address: str) -> None:
        code = process.wait()
        if process not in self._processes:
            return  # ended on purpose
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        try:
            reason = {"status": "crashed", "error": f"rank {rank} of {self._size} was {how}"}
            report_failure(connect(address), reason)
        except (RuntimeError, ValueError):
            pass  # the first rank has exited as well


class _Torchrun:
    """Ranks that the other processes of torchrun serve."""

    def start(self, address: str) -> None:
        _announce(address)

    def end(self) -> None:
        """Nothing to do: the next start, or the end of the run, ends them."""


def _followers(size: int) -> Followers:
    return _Torchrun() if launched() else LocalFollowers(list(range(1, size)), size)


_rendezvous: Store | None = None


def _store() -> Store:
    """The store that torchrun's processes share."""
    global _rendezvous
    if _rendezvous is None:
        store, _, _ = next(iter(rendezvous("env://")))
        _rendezvous = PrefixStore("flashmix", store)
        _rendezvous.set_timeout(FOREVER)
    return _rendezvous


def _announce(word: str) -> None:
    store = _store()
    store.set(_key(store.add("generation", 1)), word)


def _key(generation: int) -> str:
    return f"ranks/{generation}"

"""A pool of processes in one gloo group, which run functions of the tests' modules together."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import traceback
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    "module_cases",
    "parallel_failures",
    "parallel_graphs",
    "parallel_volume",
]
"""What the fork server imports once, so that the processes that it forks need not."""
ANSWER_S = 120


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _work(rank: int, size: int, port: int, timeout_s: float, pipe) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    import torch.distributed as dist

    import parallel_cases

    dist.init_process_group(
        "gloo", rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
    )
    parallel_cases.start()
    pipe.send("ready")
    while (job := pipe.recv()) is not None:
        name, arguments, keywords = job
        module, _, function = name.rpartition(".")
        try:
            cases = importlib.import_module(module) if module else parallel_cases
            answer = getattr(cases, function)(*arguments, **keywords)
        except Exception as error:
            answer = Failure(type(error).__name__, str(error), traceback.format_exc())
        pipe.send(answer)
    os._exit(0)  # what is left of a broken group must not hold the process


@contextmanager
def importable_tests():
    """The fork server finds modules by PYTHONPATH alone, and skips silently those it does not."""
    CONTEXT.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


class Failure:
    """An exception of a worker."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        self.kind, self.message, self.trace = kind, message, trace


class Pool:
    """``size`` ranks; ``pool.run(name, ...)`` calls a function on each and returns the answers.

    It is one of ``parallel_cases``, or of another module by its name, "module.function".
    """

    def __init__(self, size: int, timeout_s: float = 90) -> None:
        port = _free_port()
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(
                target=_work, args=(rank, size, port, timeout_s, theirs), daemon=True
            )
            with importable_tests():
                process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        assert [pipe.recv() for pipe in self.pipes] == ["ready"] * size

    def ask(self, name: str, *arguments, **keywords) -> list:
        """Each rank's answer, an exception as a :class:`Failure`, None for a rank that died."""
        for pipe in self.pipes:
            pipe.send((name, arguments, keywords))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(ANSWER_S), f"rank {rank} hangs in {name}"
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append(None)
        return answers

    def run(self, name: str, *arguments, **keywords) -> list:
        """As :meth:`ask`; a rank's exception fails the test."""
        answers = self.ask(name, *arguments, **keywords)
        for rank, answer in enumerate(answers):
            assert not isinstance(answer, Failure), f"rank {rank}: {answer.trace}"
        return answers

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

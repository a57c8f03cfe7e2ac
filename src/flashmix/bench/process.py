"""The parent's side of a worker process: start, hear, time out, kill."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flashmix.errors import FlashmixError

START_LIMIT = 120.0
TICK_SECONDS, LATE_SECONDS = 0.5, 1.0
"""Waiting is done in ticks; one that took so much longer was one in which this process stood."""


class WorkerDiedError(Exception):
    """The worker ended, or was ended because it said nothing for too long."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def package() -> str:
    """The folder that flashmix is imported from."""
    return str(Path(__file__).resolve().parents[1])


class Worker:
    """A worker process of its own session, so that Ctrl-C reaches the parent alone.

    ``arguments`` follow the module on its command line; ``environment`` holds variables that it has
    besides, or instead of, this process's own.
    """

    def __init__(
        self,
        module: str = "flashmix.bench.worker",
        *arguments: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by kill)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.ready = self._next(START_LIMIT)
        except WorkerDiedError as death:
            raise FlashmixError(
                f"the benchmark's worker process did not start: {death.reason}"
            ) from None
        except BaseException:
            self.kill()
            raise
        here, there = package(), self.ready.get("package")
        if there not in (None, here):
            self.kill()
            raise FlashmixError(
                f"the worker process imports flashmix from {there}, this process from {here}: it "
                f"would measure other code. Set PYTHONPATH to {Path(here).parent}, or start in "
                "another folder"
            )

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self._process.stdout:
                if line.endswith("\n"):  # the last may be half an event: its writer was killed
                    self._lines.put(line)
        self._lines.put(None)

    def _next(self, limit: float) -> dict[str, Any]:
        try:
            line = self._wait(limit)
        except queue.Empty:
            self.kill()
            raise WorkerDiedError("timeout", f"no progress within {limit:g} s") from None
        if line is None:
            code = self._process.wait()
            last = self._last_words()
            if code < 0:
                name = signal.Signals(-code).name
                raise WorkerDiedError(
                    "crashed", f"killed by {name}" + (f": {last}" if last else "")
                )
            raise WorkerDiedError(
                "crashed", f"exited with code {code}" + (f": {last}" if last else "")
            )
        event: dict[str, Any] = json.loads(line)
        return event

    def _wait(self, limit: float) -> str | None:
        """The next line, or Empty after ``limit`` seconds in which this process ran.

        Time in which it was stopped (Ctrl-Z) or the machine slept says nothing of the worker.
        """
        left = limit
        while True:
            tick, begun = min(TICK_SECONDS, left), time.monotonic()
            try:
                return self._lines.get(timeout=tick)
            except queue.Empty:
                if time.monotonic() - begun < tick + LATE_SECONDS:
                    left -= tick
                if left <= 0:
                    raise

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def run(self, job: dict[str, Any], limit: float) -> Iterator[dict[str, Any]]:
        """Events of a job; each must follow the last within ``limit`` seconds.

        Raises:
            WorkerDiedError: the process ended, or was silent for too long and was killed.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        while (event := self._next(limit))["event"] != "idle":
            yield event

    def stop(self) -> None:
        """Ask the process to save what it has and say so."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process and whatever it started."""
        end_session(self._process)
        self._errors.close()


def end_session(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a session of its own, and all that is in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

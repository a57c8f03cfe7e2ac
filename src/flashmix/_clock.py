"""Seconds in which this process ran: time in which it was stopped, or frozen, is left out.

A stopped process (Ctrl-Z, SIGSTOP, a frozen container) sees its clocks jump. A process that called
:func:`watch` notices, since a thread of it that wakes every quarter of a second did not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TICK_SECONDS = 0.25
LONGEST_SECONDS = 5.0
"""A thread that did not wake for longer was stopped; a shorter stop counts as running."""


class RunningClock:
    """Seconds that a process ran, by the ticks of one of its threads.

    ``now`` is the clock that jumps.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._ticked: float | None = None
        self._stopped = 0.0
        self._lock = threading.Lock()

    def tick(self) -> None:
        """Say that the process runs."""
        with self._lock:
            now = self._now()
            self._stopped += self._gap(now)
            self._ticked = now

    def stopped(self) -> float:
        """Seconds in all that the process was stopped."""
        with self._lock:
            return self._stopped + self._gap(self._now())

    def seconds(self) -> float:
        """Seconds since some moment, in which the process ran."""
        with self._lock:
            now = self._now()
            return now - self._stopped - self._gap(now)

    def _gap(self, now: float) -> float:
        """How long the process was stopped since the last tick."""
        gap = 0.0 if self._ticked is None else now - self._ticked
        return gap if gap > LONGEST_SECONDS else 0.0


_clock = RunningClock()
running_seconds = _clock.seconds
stopped_seconds = _clock.stopped


def watch(more: Callable[[], bool]) -> None:
    """Tick until ``more`` says no; for a thread of its own."""
    while more():
        _clock.tick()
        time.sleep(TICK_SECONDS)

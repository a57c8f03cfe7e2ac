"""Timing of what is compared, interleaved: A B C A B C ..., so that drift meets all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch.utils.benchmark import Timer

from flashmix._clock import running_seconds, stopped_seconds

Action = Callable[[], object]
L2_FLUSH_BYTES = 256 << 20
MIN_SAMPLE_SECONDS = 2e-3
FEWEST_SAMPLES = 3
WARM_UP_SECONDS = 3.0
HOST_CALLS = 5
MOST_AHEAD_SECONDS = 0.1


class CpuClock:
    """Seconds of one call on the CPU, by ``torch.utils.benchmark``."""

    host_seconds = None
    """The CPU does both parts."""

    def __init__(self, action: Action) -> None:
        self._timer = Timer("action()", globals={"action": action}, num_threads=_threads())

    def __call__(self, calls: int) -> float:
        """Mean seconds of ``calls`` calls in a row."""
        return self._timer.timeit(calls).mean


class CudaClock:
    """Seconds of one call on the GPU, by events, with the L2 cache flushed before each.

    So many flushes run before each call that the GPU is busy until Python has issued all of it:
    this is the GPU's time alone. ``host_seconds`` is Python's: how long one call takes to return
    while the GPU is idle. Of calls that follow each other, each costs the larger of the two.
    """

    _flush: torch.Tensor | None = None
    _flush_seconds = 0.0

    def __init__(self, action: Action) -> None:
        self._action = action
        self.host_seconds: float | None = None

    def __call__(self, calls: int) -> float:
        """Mean seconds of ``calls`` calls."""
        if CudaClock._flush is None:
            CudaClock._flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")
            CudaClock._flush_seconds = statistics.median(_gpu_seconds(self._flush_cache, 9))
        if self.host_seconds is None:
            self.host_seconds = statistics.median(self._issue() for _ in range(HOST_CALLS))
        ahead = min(2 * self.host_seconds, MOST_AHEAD_SECONDS)
        flushes = 1 + math.ceil(ahead / self._flush_seconds)

        def get_ahead() -> None:
            for _ in range(flushes):
                self._flush_cache()

        return statistics.fmean(_gpu_seconds(self._action, calls, get_ahead))

    def _flush_cache(self) -> None:
        assert self._flush is not None
        self._flush.zero_()

    def _issue(self) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        self._action()
        return time.perf_counter() - start


class WallClock:
    """Seconds of one call as a user waits for it: Python's part and the GPU's, none of it idle."""

    host_seconds = None
    """One clock sees both parts."""

    def __init__(self, action: Action) -> None:
        self._action = action

    def __call__(self, calls: int) -> float:
        """Mean seconds of ``calls`` calls in a row."""
        _finish()
        start = time.perf_counter()
        for _ in range(calls):
            self._action()
        _finish()
        return (time.perf_counter() - start) / calls


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _gpu_seconds(
    action: Action, calls: int, before: Callable[[], object] = lambda: None
) -> list[float]:
    """Seconds that the GPU takes for each call of ``action``, ``before`` left out."""
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(calls)
    ]
    for start, end in events:
        before()
        start.record()
        action()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


Clock = Callable[[int], float]
"""Mean seconds of so many calls in a row."""


def _threads() -> int:
    return torch.get_num_threads()


def clock(action: Action, device: str) -> CpuClock | CudaClock:
    """The clock for a device."""
    return CudaClock(action) if device == "cuda" else CpuClock(action)


def calls_per_sample(clock: Clock, before: Callable[[], object] = lambda: None) -> int:
    """Warm up until two calls in a row agree within a fifth; then how many calls make a sample.

    Slow calls warm up twice at least, and for no longer than three seconds.
    A sample lasts at least two milliseconds, so that the timer's own cost does not show.
    ``before`` is called before every call.
    """
    before()
    seconds = clock(1)
    taken = seconds
    for _ in range(10):
        before()
        previous, seconds = seconds, clock(1)
        taken += seconds
        if abs(seconds - previous) <= 0.2 * previous or taken > WARM_UP_SECONDS:
            break
    return max(1, min(1000, round(MIN_SAMPLE_SECONDS / max(seconds, 1e-7))))


def interleave(
    clocks: Sequence[Clock],
    *,
    min_samples: int,
    max_samples: int,
    seconds_each: float,
    max_seconds_each: float = float("inf"),
    before: Callable[[int], object] = lambda index: None,
) -> Iterator[tuple[int, float]]:
    """Yield (index, seconds of one call), in turn over ``clocks`` that still need samples.

    A clock is done at ``max_samples``, or at ``min_samples`` once it has taken ``seconds_each``, or
    at three samples once it has taken ``max_seconds_each``.
    ``before`` hears which clock is about to run, in the warm-up too: a slow one is no hung one.
    """
    calls = []
    for index, one in enumerate(clocks):
        calls.append(calls_per_sample(one, partial(before, index)))
    taken = [0.0] * len(clocks)
    for round_number in range(max_samples):
        for index, one in enumerate(clocks):
            if round_number >= min_samples and taken[index] >= seconds_each:
                continue
            if round_number >= FEWEST_SAMPLES and taken[index] >= max_seconds_each:
                continue
            while True:
                before(index)
                stopped, start = stopped_seconds(), running_seconds()
                seconds = one(calls[index])
                if stopped_seconds() == stopped:
                    break  # otherwise the process was stopped meanwhile: that is no sample
            taken[index] += running_seconds() - start
            yield index, seconds

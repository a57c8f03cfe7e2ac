"""Timing of GPU work: CUDA graphs replayed over inputs larger than the cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch


def samples_ms(run: Callable[[], Any], repeats: int = 20, calls: int = 1) -> list[float]:
    """Milliseconds of one call of ``run``, one sample per replay of a graph of ``calls`` calls."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    graph.replay()
    times = []
    for _ in range(repeats):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return times


def median_ms(run: Callable[[], Any], repeats: int = 20) -> float:
    """The median of :func:`samples_ms`."""
    return statistics.median(samples_ms(run, repeats))

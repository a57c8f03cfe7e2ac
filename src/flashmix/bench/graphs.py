"""An action as a CUDA graph: the GPU replays what Python issued once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flashmix.errors import ArgumentError

WARM_UP_CALLS = 3


def replayed(action: Callable[[], object], device: str) -> Callable[[], object]:
    """What runs ``action`` as it was captured once, on the same tensors.

    It is called on a side stream before it is captured, as PyTorch's notes on CUDA graphs ask. Over
    ranks, each of them calls this at once.

    Args:
        action: takes and gives nothing; it must leave no gradients behind.
        device: "cuda"; CPUs have no such graphs.
    """
    if device != "cuda":
        raise ArgumentError(f"CUDA graphs need device 'cuda', got {device!r}")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            action()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph.replay

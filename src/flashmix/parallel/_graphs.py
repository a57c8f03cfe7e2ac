"""What capturing in a CUDA graph asks of sharded modules.

A graph's kernels read tensors where they lay when it was captured, and nothing runs on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")


def capturing() -> bool:
    """Whether what is issued now goes into a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def cached(maxsize: int) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """``functools.lru_cache`` for tensors; what a graph was captured with is never let go of.

    Where it was, a graph would read what lies there by then.
    """

    def decorate(make: Callable[..., Made]) -> Callable[..., Made]:
        recent = functools.lru_cache(maxsize)(make)
        captured: dict[tuple[Any, ...], Made] = {}

        @functools.wraps(make)
        def get(*arguments: Any) -> Made:
            if arguments in captured:
                return captured[arguments]
            found = recent(*arguments)
            if capturing():
                captured[arguments] = found
            return found

        return get

    return decorate

"""Sharded modules in CUDA graphs: whether a capture runs, and tensors that captures keep alive.

The kernels of a graph read tensors at the addresses they had when it was captured, and no Python
runs in a replay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")


def capturing() -> bool:
    """Whether the current stream is being captured in a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def cached(maxsize: int) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """``functools.lru_cache`` for tensors, which never frees what a graph was captured with.

    A graph would otherwise read memory that was freed and used anew.
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

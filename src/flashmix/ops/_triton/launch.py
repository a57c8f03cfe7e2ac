"""What launches share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flashmix.ops._triton.availability import INTERPRETED

MOST_SEQUENCES = 65_535
"""The largest grid along an axis other than the first."""

MOST_OFFSET = 1 << 31
"""Kernels address the elements of a sequence by 32-bit offsets."""

SMALLEST = 16
"""The least side of a matrix product on tensor cores."""


def cdiv(size: int, part: int) -> int:
    """How many parts hold ``size``. Triton's own takes 4 us on the host."""
    return -(-size // part)


def next_power_of_2(size: int) -> int:
    """The least power of two that is no less than ``size``."""
    return 1 << (size - 1).bit_length()


@functools.cache
def padded(size: int) -> int:
    """The least power of two that holds ``size`` and a tensor-core product takes."""
    return max(SMALLEST, next_power_of_2(size))


def divisors(size: int) -> Iterator[int]:
    """Divisors of ``size``, largest first."""
    return (part for part in range(size, 0, -1) if size % part == 0)


def by_batches(run: Callable[..., Tensor], *xs: Tensor) -> Tensor:
    """``run(*xs)`` for tensors [B, N, D] in as many launches as grids and offsets ask for."""
    xs = tuple(_addressable(x) for x in xs)
    if not xs[0].shape[0]:
        return xs[0].new_empty(xs[0].shape)
    if xs[0].shape[0] <= MOST_SEQUENCES:
        return run(*xs)
    parts = zip(*(x.split(MOST_SEQUENCES) for x in xs), strict=True)
    return torch.cat([run(*part) for part in parts])


def _addressable(x: Tensor) -> Tensor:
    """``x``, copied only where its strides reach further than offsets do."""
    reach = sum(
        (size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)
    )
    return x if reach < MOST_OFFSET else x.contiguous()


def precision(dtype: torch.dtype) -> str:
    """How products keep float32 accuracy on tensor cores; half types need nothing."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; the interpreter has one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def signals(device: torch.device) -> bool:
    """Whether a kernel may start before the one before it has ended, and wait there for it."""
    if INTERPRETED or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)

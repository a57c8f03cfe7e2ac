"""Tensors [B, H, N, dh] as the native kernels take them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flashmix.ops._cpu.library import Shape, address
from flashmix.ops._padding import real_first
from flashmix.ops._precision import transform_dtype


def widen(*xs: Tensor) -> list[Tensor]:
    """``xs`` in the dtype that the kernels compute in, the rows of a head contiguous."""
    wide = [x.to(transform_dtype(x.dtype)) for x in xs]
    return [x if x.stride(3) == 1 else x.contiguous() for x in wide]


def strides(*xs: Tensor) -> Any:
    """Those of batch, head and token of each tensor, one after the other."""
    if any(x.stride(3) != 1 and x.size(3) != 1 and x.numel() for x in xs):
        raise AssertionError("a kernel would misread rows whose elements do not stand side by side")
    flat = [stride for x in xs for stride in x.stride()[:3]]
    return (ctypes.c_int64 * len(flat))(*flat)


def shape_of(x: Tensor, mask: Tensor | None) -> tuple[Shape, tuple[Tensor, ...]]:
    """The sequences of ``x`` with their real tokens, and the tensors this points into."""
    if mask is None:
        return Shape(*x.shape, None, None), ()
    order, lengths = real_first(mask), mask.sum(1)
    return Shape(*x.shape, address(order), address(lengths)), (order, lengths)


def _along(order: Tensor, x: Tensor) -> Tensor:
    """``order`` [B, N] as an index for the tokens of ``x`` [B, H, N, ...]."""
    batch, n = order.shape
    return order.reshape(batch, 1, n, *(1,) * (x.dim() - 3)).expand_as(x)


def with_real_first(
    run: Callable[..., list[Tensor]], mask: Tensor | None, *xs: Tensor
) -> tuple[Tensor, ...]:
    """``run(make, shape, *xs)`` with the real tokens of ``xs`` first, so that distances count them.

    ``make(*shape)`` makes its results [B, H, N, ...], which are zero at padding. Without a mask
    ``xs`` are passed as they are.
    """
    sizes = xs[0].shape
    if mask is None:
        make = partial(torch.empty, dtype=xs[0].dtype)
        return tuple(run(make, Shape(*sizes, None, None), *xs))
    order, lengths = real_first(mask), mask.sum(1)
    make = partial(torch.zeros, dtype=xs[0].dtype)
    packed = [x.gather(2, _along(order, x)) for x in xs]
    results = run(make, Shape(*sizes, None, address(lengths)), *packed)
    return tuple(torch.zeros_like(y).scatter_(2, _along(order, y), y) for y in results)

"""Tensors [B, H, N, dh] as the native kernels take them."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

from flashmix.ops._cpu.library import Shape
from flashmix.ops._padding import real_first
from flashmix.ops._precision import transform_dtype


def widen(*xs: Tensor) -> list[Tensor]:
    """``xs`` in the dtype that the kernels compute in, the rows of a head contiguous."""
    wide = [x.to(transform_dtype(x.dtype)) for x in xs]
    return [x if x.stride(3) == 1 else x.contiguous() for x in wide]


def strides(*xs: Tensor) -> Any:
    """Those of batch, head and token of each tensor, one after the other."""
    flat = [stride for x in xs for stride in x.stride()[:3]]
    return (ctypes.c_int64 * len(flat))(*flat)


def shape_of(x: Tensor, mask: Tensor | None) -> tuple[Shape, tuple[Tensor, ...]]:
    """The sequences of ``x`` with their real tokens, and the tensors this points into."""
    if mask is None:
        return Shape(*x.shape, None, None), ()
    order, lengths = real_first(mask), mask.sum(1)
    return Shape(*x.shape, order.data_ptr(), lengths.data_ptr()), (order, lengths)

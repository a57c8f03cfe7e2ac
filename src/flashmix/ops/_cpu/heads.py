"""Tensors as the native kernels take them: [B, H, N, dh], or [B, N, D] as of one head."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from flashmix.ops._cpu.library import Shape, address
from flashmix.ops._packed import longest_of
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


def shape_of(sizes: torch.Size, mask: Tensor | None = None) -> tuple[Shape, Tensor | None]:
    """The sequences of [B, H, N, dh] or [B, N, D], and the tensor that this points into."""
    batch, *heads, tokens, width = sizes
    if mask is not None:
        mask = mask.contiguous()
    real = None if mask is None else address(mask)
    return Shape(batch, *(heads or [1]), tokens, width, real, None), mask


def packed_shape_of(sizes: torch.Size, offsets: Tensor) -> tuple[Shape, Tensor]:
    """The S sequences of packed [H, T, dh] or [T, D], and the tensor that this points into.

    Sequence s is the tokens offsets[s] to offsets[s + 1]; ``offsets`` is int32 [S + 1].

    Raises:
        ArgumentError: the offsets do not rise from 0 to T; kernels would read what is not theirs.
    """
    *heads, tokens, width = sizes
    longest_of("packed tokens", offsets, tokens)
    offsets = offsets.contiguous()
    sequences = len(offsets) - 1
    return Shape(sequences, *(heads or [1]), tokens, width, None, address(offsets)), offsets

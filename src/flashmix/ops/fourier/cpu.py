"""Fourier attention in native code: a head's spectrum is all that is held between the transforms.

The backward saves the input alone. Tokens stand on axis 1 in here: v [B, N, H, dh].
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from flashmix.ops._cpu.heads import strides, widen
from flashmix.ops._cpu.library import DATA, REAL, ROWS, SHAPE, STRIDES, Kernel, Shape
from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length
from flashmix.ops.fourier.reference import EPS
from flashmix.ops.fourier.registration import register

_forward = Kernel("fourier_forward", SHAPE, REAL, ROWS, STRIDES, DATA)
_backward = Kernel("fourier_backward", SHAPE, REAL, ROWS, ROWS, STRIDES, DATA)


def _run(kernel: Kernel, *xs: Tensor) -> Tensor:
    xs = tuple(widen(*xs))
    y = torch.empty(xs[0].shape, dtype=xs[0].dtype)
    by_head = [x.transpose(1, 2) for x in (*xs, y)]
    kernel(y.dtype, Shape(*by_head[0].shape, None, None), EPS, *xs, strides(*by_head), y)
    return y


@kernel_op("fourier_cpu", key="CPU")
def _op(v: Tensor, mask: Tensor | None) -> Tensor:
    return each_length(partial(_run, _forward), mask, *widen(v)).to(v.dtype)


@kernel_op("fourier_cpu_backward", key="CPU")
def _backward_op(grad: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return each_length(partial(_run, _backward), mask, *widen(grad, v)).to(v.dtype)


register(_op, _backward_op)


def fourier(v: Tensor, mask: Tensor | None) -> Tensor:
    """Fourier attention of each sequence over its own true length, [B, H, N, dh]."""
    y: Tensor = _op(v.transpose(1, 2), mask)
    return y.transpose(1, 2)

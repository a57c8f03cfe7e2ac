"""Fourier attention in native code: a head's spectrum is all that is held between the transforms.

The backward saves the input alone. Tokens stand on axis 1 in here: v [B, N, H, dh].
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._cpu.heads import packed_shape_of, shape_of, strides, widen
from flashmix.ops._cpu.library import DATA, REAL, ROWS, SHAPE, STRIDES, Kernel, Shape
from flashmix.ops._library import kernel_op
from flashmix.ops.fourier.reference import EPS
from flashmix.ops.fourier.registration import packed_formula, register

_forward = Kernel("fourier_forward", SHAPE, REAL, ROWS, STRIDES, DATA)
_backward = Kernel("fourier_backward", SHAPE, REAL, ROWS, ROWS, STRIDES, DATA)


def _run(kernel: Kernel, shape: Shape, *xs: Tensor) -> Tensor:
    wide = widen(*xs)
    y = torch.empty(xs[0].shape, dtype=wide[0].dtype)
    kernel(y.dtype, shape, EPS, *wide, strides(*(x.transpose(1, 2) for x in (*wide, y))), y)
    return y


@kernel_op("fourier_cpu", key="CPU")
def _op(v: Tensor, mask: Tensor | None) -> Tensor:
    shape, _alive = shape_of(v.transpose(1, 2).shape, mask)
    return _run(_forward, shape, v).to(v.dtype)


@kernel_op("fourier_cpu_backward", key="CPU")
def _backward_op(grad: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    shape, _alive = shape_of(v.transpose(1, 2).shape, mask)
    return _run(_backward, shape, grad, v).to(v.dtype)


def _run_packed(kernel: Kernel, cu_seqlens: Tensor, *xs: Tensor) -> Tensor:
    shape, _alive = packed_shape_of(xs[0].transpose(0, 1).shape, cu_seqlens)
    return _run(kernel, shape, *(x[None] for x in xs))[0].to(xs[-1].dtype)


@kernel_op("fourier_cpu_packed", key="CPU", sums=True)
def _packed(v: Tensor, cu_seqlens: Tensor) -> Tensor:
    return _run_packed(_forward, cu_seqlens, v)


@kernel_op("fourier_cpu_packed_backward", key="CPU", sums=True)
def _packed_backward(grad: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    return _run_packed(_backward, cu_seqlens, grad, v)


def packed(v: Tensor, cu_seqlens: Tensor, max_seqlen: int | None) -> Tensor:
    """Fourier attention of packed sequences, [T, H, dh]."""
    y: Tensor = _packed(v, cu_seqlens)
    return y


register(_op, _backward_op)
register(_packed, _packed_backward, packed_formula)


def fourier(v: Tensor, mask: Tensor | None) -> Tensor:
    """Fourier attention of each sequence over its own true length, [B, H, N, dh]."""
    y: Tensor = _op(v.transpose(1, 2), mask)
    return y.transpose(1, 2)

"""The circular spectral filter in native code: a sequence stays in cache from transform to output.

The backward saves the input and the filter, and no spectrum.

Shapes: B batch, N tokens, D channels, M learned modes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._cpu.heads import packed_shape_of, shape_of
from flashmix.ops._cpu.library import DATA, FLAG, INT, SHAPE, Kernel, Shape
from flashmix.ops._library import kernel_op
from flashmix.ops.spectral.registration import packed_formula, register

_forward = Kernel("spectral_forward", SHAPE, INT, FLAG, DATA, DATA, DATA, DATA)
_backward = Kernel("spectral_backward", SHAPE, INT, FLAG, DATA, DATA, DATA, DATA, DATA, DATA)


def _run(x: Tensor, shape: Shape, weight: Tensor, bias: Tensor | None, unitary: bool) -> Tensor:
    weight = weight.contiguous()
    offset = None if bias is None else bias.to(weight.dtype).contiguous()
    wide = x.to(weight.dtype).contiguous()
    y = torch.empty(wide.shape, dtype=wide.dtype)
    _forward(y.dtype, shape, len(weight), unitary, wide, weight, offset, y)
    return y.to(x.dtype)


def _run_backward(
    grad: Tensor, x: Tensor, shape: Shape, weight: Tensor, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, weight = weight.dtype, weight.contiguous()
    wide, upstream = x.to(dtype).contiguous(), grad.to(dtype).contiguous()
    grad_x = torch.empty(x.shape, dtype=dtype)
    grad_weight = torch.zeros(weight.shape, dtype=dtype)
    grad_bias = torch.zeros(x.shape[-1], dtype=dtype)
    grads = (grad_x, grad_weight, grad_bias)
    _backward(dtype, shape, len(weight), unitary, upstream, wide, weight, *grads)
    return grad_x.to(x.dtype), grad_weight, grad_bias


@kernel_op("spectral_cpu", key="CPU", unbatched=("weight", "bias"))
def spectral(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, unitary: bool
) -> Tensor:
    """irfft(W * rfft(x)) + b of each sequence over its own true length, [B, N, D] like ``x``.

    Takes x [B, N, D]; W as real and imaginary parts [M, D, 2] in the dtype to compute in; b [D] or
    None; a mask, bool [B, N], or None; and whether the filter is unitary: whether it passes the
    modes from M up and leaves DC and Nyquist alone.
    """
    shape, _alive = shape_of(x.shape, mask)
    return _run(x, shape, weight, bias, unitary)


@kernel_op("spectral_cpu_backward", key="CPU", sums=True)
def spectral_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to ``x``, ``weight`` and a bias [D] in the dtype of ``weight``."""
    shape, _alive = shape_of(x.shape, mask)
    return _run_backward(grad, x, shape, weight, unitary)


@kernel_op("spectral_cpu_packed", key="CPU", sums=True)
def packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, unitary: bool
) -> Tensor:
    """The filter of packed sequences, [T, D] like ``x``."""
    shape, _alive = packed_shape_of(x.shape, cu_seqlens)
    return _run(x, shape, weight, bias, unitary)


@kernel_op("spectral_cpu_packed_backward", key="CPU", sums=True)
def _packed_backward(
    grad: Tensor, x: Tensor, weight: Tensor, cu_seqlens: Tensor, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape, _alive = packed_shape_of(x.shape, cu_seqlens)
    return _run_backward(grad, x, shape, weight, unitary)


register(spectral, spectral_backward)
register(packed, _packed_backward, packed_formula)

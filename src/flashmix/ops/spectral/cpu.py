"""The circular spectral filter in native code: a sequence stays in cache from transform to output.

The backward saves the input and the filter, and no spectrum.

Shapes: B batch, N tokens, D channels, M learned modes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._cpu.library import DATA, FLAG, INT, Kernel
from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length, zero_padding
from flashmix.ops.spectral.registration import register

_forward = Kernel("spectral_forward", INT, INT, INT, INT, FLAG, DATA, DATA, DATA, DATA)
_backward = Kernel("spectral_backward", INT, INT, INT, INT, FLAG, DATA, DATA, DATA, DATA, DATA)


def _modes(n: int, weight: Tensor) -> int:
    return min(weight.shape[0], n // 2 + 1)


@kernel_op("spectral_cpu", key="CPU", unbatched=("weight", "bias"))
def spectral(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, unitary: bool
) -> Tensor:
    """irfft(W * rfft(x)) + b of each sequence over its own true length, [B, N, D] like ``x``.

    Takes x [B, N, D]; W as real and imaginary parts [M, D, 2] in the dtype to compute in; b [D] or
    None; a mask, bool [B, N], or None; and whether the filter is unitary: whether it passes the
    modes from M up and leaves DC and Nyquist alone.
    """
    weight = weight.contiguous()
    offset = None if bias is None else bias.to(weight.dtype).contiguous()

    def run(x: Tensor) -> Tensor:
        modes = _modes(x.shape[1], weight)
        x = x.contiguous()
        y = torch.empty_like(x)
        _forward(x.dtype, *x.shape, modes, unitary, x, weight, offset, y)
        return y

    return each_length(run, mask, x.to(weight.dtype)).to(x.dtype)


@kernel_op("spectral_cpu_backward", key="CPU", sums=True)
def spectral_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to ``x``, ``weight`` and a bias [D] in the dtype of ``weight``."""
    weight = weight.contiguous()
    grad_weight = torch.zeros(weight.shape, dtype=weight.dtype)

    def run(grad: Tensor, x: Tensor) -> Tensor:
        modes = _modes(x.shape[1], weight)
        grad, x = grad.contiguous(), x.contiguous()
        grad_x, part = torch.empty(x.shape, dtype=x.dtype), torch.zeros_like(grad_weight)
        _backward(x.dtype, *x.shape, modes, unitary, grad, x, weight, grad_x, part)
        grad_weight.add_(part)
        return grad_x

    wide = grad.to(weight.dtype)
    grad_x = each_length(run, mask, wide, x.to(weight.dtype)).to(x.dtype)
    return grad_x, grad_weight, zero_padding(wide, mask).sum((0, 1))


register(spectral, spectral_backward)

"""Causal convolution along tokens whose causality is structural, not a matter of rounding.

One FFT over the whole sequence leaks rounding errors of later tokens into earlier outputs. Here
each output only ever meets inputs that do not follow it: products inside small blocks are direct,
and each level of doubling sends the first half of a span to its second half through an FFT.
Work is O(N log N log L) for L taps.

Shapes: B batch, N tokens, D channels, L taps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._precision import full_precision

BASE = 64


def _shift(x: Tensor, h: Tensor) -> Tensor:
    """What spans ``x`` [S, c, D] add to the c tokens right after them."""
    c = x.shape[1]
    spectrum = torch.fft.rfft(x, n=2 * c, dim=1) * torch.fft.rfft(h[: 2 * c], n=2 * c, dim=0)
    return torch.fft.irfft(spectrum, n=2 * c, dim=1)[:, c:]


def _direct(x: Tensor, h: Tensor) -> Tensor:
    """The convolution inside blocks ``x`` [S, c, D] by lower-triangular Toeplitz products."""
    c = x.shape[1]
    lag = torch.arange(c, device=x.device)[:, None] - torch.arange(c, device=x.device)
    taps = F.pad(h[:c], (0, 0, 0, max(0, c - len(h))))[lag.clamp(min=0)]
    with full_precision(x.device):
        return torch.einsum("tsd,bsd->btd", taps.masked_fill((lag < 0)[..., None], 0), x)


@kernel_op("causal_conv", unbatched=("h",), composed=True)
def causal_conv(x: Tensor, h: Tensor) -> Tensor:
    """y[t] = sum over s of h[s] x[t - s], x taken as zero before its start.

    Args:
        x: [B, N, D].
        h: [L, D], the dtype of ``x``.
    """
    batch, n, dim = x.shape
    if not batch:
        return x.new_empty(x.shape)
    h = h[:n]
    span = max(min(BASE, 1 << (n - 1).bit_length()), 1 << (len(h) - 1).bit_length())
    base = min(BASE, span)
    padded = -(-n // span) * span
    x = F.pad(x, (0, 0, 0, padded - n))
    y = _direct(x.reshape(-1, base, dim), h).reshape(batch, padded, dim)
    c = base
    while c < span:
        halves = (batch * padded // (2 * c), 2, c, dim)
        y.view(halves)[:, 1] += _shift(x.reshape(halves)[:, 0], h)
        c *= 2
    if padded > span:
        spans = (batch, padded // span, span, dim)
        before = x.reshape(spans)[:, :-1].reshape(-1, span, dim)
        y.view(spans)[:, 1:] += _shift(before, h).view(batch, -1, span, dim)
    return y[:, :n].contiguous()


@causal_conv.register_fake
def _(x: Tensor, h: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@kernel_op("causal_conv_taps_grad", sums=True, composed=True)
def _taps_grad(grad: Tensor, x: Tensor, taps: int) -> Tensor:
    """Sum over batch and t of grad[t] x[t - s] for s < taps, [taps, D]."""
    n = x.shape[1]
    if not len(x):
        return x.new_zeros(taps, x.shape[2])
    kept = min(taps, n)
    size = n + kept
    # A compiled graph calls this op without PyTorch's handling of lazy conj(), which drops it.
    spectrum = torch.conj_physical(torch.fft.rfft(x, n=size, dim=1))
    product = torch.fft.rfft(grad, n=size, dim=1) * spectrum
    found = torch.fft.irfft(product.sum(0), n=size, dim=0)[:kept]
    return F.pad(found, (0, 0, 0, taps - kept)).contiguous()


@_taps_grad.register_fake
def _(grad: Tensor, x: Tensor, taps: int) -> Tensor:
    return x.new_empty((taps, x.shape[2]))


def _setup(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
    ctx.save_for_backward(*(one for one in inputs if isinstance(one, Tensor)))


def _anticausal(grad: Tensor, h: Tensor) -> Tensor:
    """The adjoint of the convolution with ``h``: sum over s of h[s] grad[t + s]."""
    flipped: Tensor = causal_conv(grad.flip(1), h)
    return flipped.flip(1)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, h = ctx.saved_tensors
    return _anticausal(grad, h), _taps_grad(grad, x, len(h))


def _taps_grad_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
    grad, x = ctx.saved_tensors
    return causal_conv(x, upstream), _anticausal(grad, upstream), None


# Each is linear in either argument, so that every derivative is made of these two.
causal_conv.register_formula(causal_conv.kernel)
causal_conv.register_autograd(_backward, setup_context=_setup)
_taps_grad.register_formula(_taps_grad.kernel)
_taps_grad.register_autograd(_taps_grad_backward, setup_context=_setup)

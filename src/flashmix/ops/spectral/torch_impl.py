"""Spectral filtering with PyTorch's FFTs, and a backward that saves only the input and the filter.

Shapes: B batch, N tokens, D channels, M modes, K modes in use, n true length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops._derivatives import vjp
from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length, pack, real_first, unpack, zero_padding
from flashmix.ops.spectral import reference
from flashmix.ops.spectral.causal_conv import causal_conv
from flashmix.ops.spectral.filter import filter_for_length, impulse_response


def filter_tokens(
    x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool, context: int | None
) -> Tensor:
    """The circular filter, or with ``context`` taps the causal one, [B, N, D] in W's dtype."""
    if context is None:
        return spectral(x, weight, mask, unitary)
    return causal(x.to(weight.dtype), weight, mask, context)


def _filter(x: Tensor, factors: Tensor, unitary: bool) -> Tensor:
    kept = len(factors)
    spectrum = torch.fft.rfft(x, dim=1)
    spectrum[:, :kept] *= factors
    if not unitary:
        spectrum[:, kept:] = 0
    return torch.fft.irfft(spectrum, n=x.shape[1], dim=1)


@kernel_op("spectral_torch", unbatched=("weight",), composed=True)
def spectral(x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool) -> Tensor:
    """irfft(W * rfft(x)) of each sequence over its own true length, [B, N, D] in W's dtype.

    Half precision is widened in here, so that autograd saves the narrow input.
    """

    def run(x: Tensor) -> Tensor:
        return _filter(x, filter_for_length(weight, x.shape[1], unitary), unitary)

    return each_length(run, mask, x.to(weight.dtype))


@spectral.register_fake
def _(x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=weight.dtype)


def _formula(x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool) -> Tensor:
    return reference.filter_tokens(x, weight, mask, unitary, None)


spectral.register_formula(_formula)


def _grads(grad: Tensor, x: Tensor, weight: Tensor, unitary: bool) -> tuple[Tensor, Tensor]:
    n = x.shape[1]
    factors = filter_for_length(weight, n, unitary)
    kept = len(factors)
    upstream = torch.fft.rfft(grad, dim=1)
    # Not conj(): a compiled graph calls this op without PyTorch's handling of lazy conjugates.
    spectrum = torch.conj_physical(torch.fft.rfft(x, dim=1)[:, :kept])
    product = (spectrum * upstream[:, :kept]).sum(0)
    mode = torch.arange(kept, device=x.device)
    own = (mode == 0) | (2 * mode == n)
    # Every mode but the self-conjugate ones represents itself and its mirror image.
    product *= (2 - own.to(weight.dtype))[:, None] / n
    grad_weight = weight.new_zeros(weight.shape)
    grad_weight[:kept] = torch.view_as_real(product)
    grad_weight[:kept, :, 1].masked_fill_(own[:, None], 0)
    if unitary:
        grad_weight[:kept].masked_fill_(own[:, None, None], 0)
    upstream[:, :kept] *= torch.conj_physical(factors)
    if not unitary:
        upstream[:, kept:] = 0
    return torch.fft.irfft(upstream, n=n, dim=1), grad_weight


@kernel_op("spectral_torch_backward", sums=True, composed=True)
def spectral_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to ``x`` and ``weight``."""
    grad_weight = weight.new_zeros(weight.shape)

    def run(grad: Tensor, x: Tensor) -> Tensor:
        grad_x, part = _grads(grad, x, weight, unitary)
        grad_weight.add_(part)
        return grad_x

    return each_length(run, mask, grad, x.to(weight.dtype)).to(x.dtype), grad_weight


@spectral_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _backward_formula(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> Any:
    return vjp(lambda x, weight: _formula(x, weight, mask, unitary), (x, weight), grad)


spectral_backward.register_formula(_backward_formula, inputs=3)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, bool], output: Tensor) -> None:
    x, weight, mask, ctx.unitary = inputs
    ctx.save_for_backward(x, weight, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    x, weight, mask = ctx.saved_tensors
    grad_x, grad_weight = spectral_backward(grad, x, weight, mask, ctx.unitary)
    return grad_x, grad_weight, None, None


spectral.register_autograd(_backward, setup_context=_setup)


def causal(x: Tensor, weight: Tensor, mask: Tensor | None, context: int) -> Tensor:
    """Causal convolution with the filter's impulse response, [B, N, D]."""
    h = impulse_response(weight, context)
    if mask is None:
        return causal_conv(x, h)
    order = real_first(mask)
    return zero_padding(unpack(causal_conv(pack(zero_padding(x, mask), order), h), order), mask)

"""Fourier attention with PyTorch's FFTs and a backward that saves nothing but its input.

Tokens stand on axis 1 in here: v [B, N, H, dh], spectrum [B, F, H, dh], F = n // 2 + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length
from flashmix.ops._precision import transform_dtype
from flashmix.ops.fourier.reference import padded_power, shares
from flashmix.ops.fourier.registration import register


def mix(v: Tensor) -> Tensor:
    """What :func:`fourier` computes of sequences without padding."""
    spectrum = torch.fft.rfft(v, dim=1)
    spectrum *= (shares(spectrum) * spectrum.shape[1])[..., None]
    return torch.fft.irfft(spectrum, n=v.shape[1], dim=1)


def gradient(grad: Tensor, v: Tensor) -> Tensor:
    """The gradient with respect to ``v``.

    With w_f the shares, y = irfft(F w V): one part of dv is the same filter applied to dy, the
    other flows through the power that set w.
    """
    n, dh = v.shape[1], v.shape[3]
    upstream, spectrum = torch.fft.rfft(grad, dim=1), torch.fft.rfft(v, dim=1)
    count = spectrum.shape[1]
    power = padded_power(spectrum)
    total = power.sum(1, keepdim=True)
    weights = power / total
    mode = torch.arange(count, device=v.device)
    # Every mode but the self-conjugate ones represents itself and its mirror image.
    multiplicity = torch.where((mode == 0) | (2 * mode == n), 1.0, 2.0)[:, None].to(v.dtype)
    product = upstream.real * spectrum.real + upstream.imag * spectrum.imag
    grad_gain = product.sum(-1) * multiplicity / n
    grad_power = (grad_gain - (grad_gain * weights).sum(1, keepdim=True)) * count / total
    through_power = (2 * n / dh) * grad_power / multiplicity
    filtered = upstream * (weights * count)[..., None] + spectrum * through_power[..., None]
    return torch.fft.irfft(filtered, n=n, dim=1)


@kernel_op("fourier_torch", composed=True)
def _op(v: Tensor, mask: Tensor | None) -> Tensor:
    return each_length(mix, mask, v.to(transform_dtype(v.dtype))).to(v.dtype)


@kernel_op("fourier_torch_backward", composed=True)
def _backward_op(grad: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    compute = transform_dtype(v.dtype)
    return each_length(gradient, mask, grad.to(compute), v.to(compute)).to(v.dtype)


register(_op, _backward_op)


def fourier(v: Tensor, mask: Tensor | None) -> Tensor:
    """Fourier attention of each sequence over its own true length, [B, H, N, dh]."""
    y: Tensor = _op(v.transpose(1, 2), mask)
    return y.transpose(1, 2)

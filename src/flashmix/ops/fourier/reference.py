"""Fourier attention: each frequency weighed by its share of the head's power.

V = rfft(v over tokens); weights = softmax over frequencies of log(power + eps), power averaged
over the head's channels; y = irfft(V * weights * number of frequencies). The softmax of a
logarithm is a share of the sum, which is how it is computed.

Shapes: B batch, H heads, N tokens, dh width of a head, F = n // 2 + 1 frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._padding import each_sequence, refuse_graphs
from flashmix.ops._precision import transform_dtype

EPS = 1e-6


def padded_power(spectrum: Tensor) -> Tensor:
    """Power + eps, [B, F, H], of ``spectrum`` [B, F, H, dh]."""
    return (spectrum.real.square() + spectrum.imag.square()).mean(-1) + EPS


def shares(spectrum: Tensor) -> Tensor:
    """Softmax over frequencies of log(power + eps), [B, F, H], of ``spectrum`` [B, F, H, dh]."""
    power = padded_power(spectrum)
    return power / power.sum(1, keepdim=True)


def fourier(v: Tensor, mask: Tensor | None) -> Tensor:
    """Fourier attention of each sequence over its own true length, [B, H, N, dh]."""

    def mix(v: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(v, dim=1)
        gain = shares(spectrum) * spectrum.shape[1]
        return torch.fft.irfft(spectrum * gain[..., None], n=v.shape[1], dim=1)

    wide = v.transpose(1, 2).to(transform_dtype(v.dtype))
    return each_sequence(mix, wide, mask).transpose(1, 2).to(v.dtype)


def fourier_weights(v: Tensor, mask: Tensor | None) -> Tensor:
    """The weights [B, H, N // 2 + 1], summing to one over the frequencies a sequence has."""
    wide = v.transpose(1, 2).to(transform_dtype(v.dtype))
    refuse_graphs(wide, mask)
    weights = wide.new_zeros(len(v), v.shape[2] // 2 + 1, v.shape[1])
    for row in range(len(v)):
        real = wide[row : row + 1] if mask is None else wide[row : row + 1, mask[row]]
        if real.numel():
            share = shares(torch.fft.rfft(real, dim=1))[0]
            weights[row, : len(share)] = share
    return weights.transpose(1, 2).to(v.dtype)

"""The learnable spectral filter irfft(W * rfft(x)) (Rao et al. 2021, GFNet; one W for any length).

Shapes: B batch, N tokens, D channels, M modes, L taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.ops._padding import each_sequence
from flashmix.ops.spectral.filter import filter_for_length, impulse_response


def filter_tokens(
    x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool, context: int | None
) -> Tensor:
    """The circular filter, or with ``context`` taps the causal one, [B, N, D] in W's dtype."""
    x = x.to(weight.dtype)
    if context is None:
        return circular(x, weight, mask, unitary)
    return causal(x, weight, mask, context)


def circular(x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool) -> Tensor:
    """irfft(W * rfft(x)) of each sequence over its own true length, [B, N, D].

    Modes from M up are dropped, or passed unchanged when ``unitary``.
    """

    def mix(x: Tensor) -> Tensor:
        n = x.shape[1]
        factors = filter_for_length(weight, n, unitary)
        spectrum = torch.fft.rfft(x, dim=1)
        low, high = spectrum[:, : len(factors)], spectrum[:, len(factors) :]
        spectrum = torch.cat((low * factors, high if unitary else high * 0), dim=1)
        return torch.fft.irfft(spectrum, n=n, dim=1)

    return each_sequence(mix, x, mask)


def causal(x: Tensor, weight: Tensor, mask: Tensor | None, context: int) -> Tensor:
    """y[t] = sum over s < L of h[s] x[t - s] with h = irfft(W, n=L) and zeros before the start."""
    h = impulse_response(weight, context)

    def mix(x: Tensor) -> Tensor:
        n = x.shape[1]
        y = torch.zeros_like(x)
        for s in range(min(n, context)):
            y = y + F.pad(h[s] * x[:, : n - s], (0, 0, s, 0))
        return y

    return each_sequence(mix, x, mask)

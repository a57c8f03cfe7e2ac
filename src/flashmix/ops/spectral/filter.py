"""The learnable filter as one sequence length sees it, Hermitian-correct.

Shapes: M learned modes, D channels, n tokens, K modes in use.
"""

from __future__ import annotations

import torch
from torch import Tensor


def filter_for_length(weight: Tensor, n: int, unitary: bool) -> Tensor:
    """The complex factors [K, D] of the lowest modes of a length-``n`` real transform.

    The self-conjugate modes (DC, and Nyquist for even ``n``) of a real signal are real, so they
    take only the real part of their weight, or stay untouched when ``unitary``.

    Args:
        weight: real [M, D, 2], the real and imaginary parts; K = min(M, n // 2 + 1).
        n: tokens.
        unitary: leave the self-conjugate modes alone.
    """
    kept = min(weight.shape[0], n // 2 + 1)
    mode = torch.arange(kept, device=weight.device)
    own = ((mode == 0) | (2 * mode == n))[:, None]
    real, imaginary = weight[:kept].unbind(-1)
    if unitary:
        real = real.masked_fill(own, 1)
    return torch.complex(real, imaginary.masked_fill(own, 0))


def impulse_response(weight: Tensor, context: int) -> Tensor:
    """irfft(W, n=context) over modes: the filter's taps in time, real [context, D]."""
    return torch.fft.irfft(filter_for_length(weight, context, False), n=context, dim=0)

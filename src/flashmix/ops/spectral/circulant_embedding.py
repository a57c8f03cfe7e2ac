"""The filter of one length as a filter of a longer one, whose transform is cheaper.

y[t] = sum over s of h[(t - s) mod n] x[s] for 0 <= s, t < n needs the taps h at the lags -(n - 1)
to n - 1. Put into a circle of P >= 2 n - 1 taps they give the same n outputs, with x followed by
zeros. It is exact for any n, prime or not, and one filter serves the whole batch.

Shapes: n tokens, P taps of the longer circle, M modes, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.ops.spectral.filter import filter_for_length


def _lags(n: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The places of the circle that hold taps, and which tap each holds."""
    early = torch.arange(n, device=device)
    late = torch.arange(1, n, device=device)
    return torch.cat((early, late + size - n)), torch.cat((early, late))


def embedded_filter(weight: Tensor, n: int, size: int, unitary: bool) -> Tensor:
    """The filter [P // 2 + 1, D, 2] of length P that acts as ``weight`` does on n tokens.

    Args:
        weight: [M, D, 2].
        n: tokens.
        size: P, at least 2 n - 1.
        unitary: as in the op; the longer filter holds it and is none itself.
    """
    factors = filter_for_length(weight, n, unitary)
    rest = n // 2 + 1 - len(factors)
    taps = torch.fft.irfft(F.pad(factors, (0, 0, 0, rest), value=float(unitary)), n=n, dim=0)
    places, which = _lags(n, size, weight.device)
    circle = taps.new_zeros(size, taps.shape[1])
    circle[places] = taps[which]
    return torch.view_as_real(torch.fft.rfft(circle, dim=0))


def lengthened_grad(grad: Tensor, weight: Tensor, n: int, unitary: bool) -> Tensor:
    """The gradient of ``weight`` from that of :func:`embedded_filter`, [P // 2 + 1, D, 2]."""
    size, kept = 2 * (grad.shape[0] - 1), min(weight.shape[0], n // 2 + 1)
    # irfft counts every mode but the self-conjugate ones twice, and divides by P.
    upstream = torch.view_as_complex(grad) * (0.5 * size)
    upstream[0], upstream[-1] = 2 * upstream[0], 2 * upstream[-1]
    circle = torch.fft.irfft(upstream, n=size, dim=0)
    places, which = _lags(n, size, weight.device)
    taps = circle[places[:n]]
    taps[which[n:]] += circle[places[n:]]
    spectrum = torch.fft.rfft(taps, dim=0)[:kept] / n
    mode = torch.arange(kept, device=weight.device)
    own = ((mode == 0) | (2 * mode == n))[:, None]
    spectrum = torch.where(own, (0.0 if unitary else 1.0) * spectrum.real, 2 * spectrum)
    return F.pad(torch.view_as_real(spectrum), (0, 0, 0, 0, 0, weight.shape[0] - kept))

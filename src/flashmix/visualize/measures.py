"""Numbers that captions state, each a function of a matrix or a spectrum.

Shapes: N tokens, F frequencies, ... any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_bits(weights: Tensor) -> Tensor:
    """Entropy of each row of ``weights`` [..., N, N], rows summing to one; in bits, [..., N].

    From 0 (one token has all the weight) to log2 N (all tokens alike).
    """
    return torch.special.entr(weights.double()).sum(-1) / torch.log(torch.tensor(2.0))


def share_within(matrix: Tensor, reach: int) -> Tensor:
    """Share of the entries' sum where |i - j| <= ``reach``, of nonnegative [..., N, N]."""
    token = torch.arange(matrix.shape[-1], device=matrix.device)
    near = (token[:, None] - token).abs() <= reach
    wide = matrix.double()
    return (wide * near).sum((-2, -1)) / wide.sum((-2, -1))


def evenly_spread_within(seq_len: int, reach: int) -> float:
    """What :func:`share_within` gives where all entries are alike."""
    return float(share_within(torch.ones(seq_len, seq_len), reach))


def share_ahead(matrix: Tensor) -> Tensor:
    """Share of the entries' sum above the diagonal (j > i), of nonnegative [..., N, N]."""
    wide = matrix.double()
    return wide.triu(1).sum((-2, -1)) / wide.sum((-2, -1))


def circulant_deviation(matrix: Tensor) -> Tensor:
    """Distance to the nearest circulant matrix over the norm, of [..., N, N]; 0 is circulant.

    A circulant matrix treats all tokens alike: entry [i, j] depends on (i - j) mod N alone.
    """
    wide = matrix.double()
    n = wide.shape[-1]
    token = torch.arange(n, device=matrix.device)
    by_lag = wide[..., (token[:, None] + token) % n, token]
    spread = by_lag - by_lag.mean(-1, keepdim=True)
    return spread.flatten(-2).norm(dim=-1) / wide.flatten(-2).norm(dim=-1)


def energy_by_frequency(x: Tensor) -> Tensor:
    """Energy of x [..., N, D] by frequency along tokens, summed over channels: [..., F].

    F = N // 2 + 1. Frequencies that represent two of the full transform count twice, so that the
    sum is N times the energy of ``x`` (Parseval).
    """
    energy = torch.fft.rfft(x.double(), dim=-2).abs().square().sum(-1)
    return energy * counted(x.shape[-2]).to(energy.device)


def counted(seq_len: int) -> Tensor:
    """How many frequencies of the full transform each one of ``rfft`` represents, float64 [F]."""
    times = torch.full((seq_len // 2 + 1,), 2.0, dtype=torch.float64)
    times[0] = 1
    if seq_len % 2 == 0:
        times[-1] = 1
    return times


def lowest_tenth(energy: Tensor, seq_len: int) -> tuple[Tensor, float]:
    """Share of ``energy`` [..., F] in the lowest tenth of frequencies, and what white noise has.

    ``energy`` is that of :func:`energy_by_frequency` for N = ``seq_len``. At least one frequency
    counts; the mean, frequency 0, is among them.
    """
    count = max(1, round(0.1 * energy.shape[-1]))
    share = energy[..., :count].sum(-1) / energy.sum(-1)
    return share, min(1.0, (2 * count - 1) / seq_len)

"""How a truncated transform is folded and blocked, and its matrix.

Tokens are counted from n + 1/2. That turns mode m by exp(-i pi m / N), which a filter does not
see, and puts mirror images N - 1 - n on tokens: cosines see x[n] + x[N-1-n], sines the difference.
Even and odd modes part in the same way between n and N/2 - 1 - n. So an even length folds to four
real products over L = N / 4 tokens, rounded up (a token in the middle is its own mirror image); an
odd length stays as it is. Mode m is number m // parities of parity m % parities.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from flashmix.ops._launcher.recording import constant
from flashmix.ops._triton.launch import cdiv, padded
from flashmix.ops._triton.matrices import phases, place

MOST_MODES = 512
"""Where the dense products stop paying: their cost grows with N * M, an FFT's with N * log N."""

_BLOCK = 64
_LENGTH_STEP = 16


@dataclass(frozen=True)
class Plan:
    """One length and the number of its modes in use."""

    seq_len: int
    kept: int

    @functools.cached_property
    def parities(self) -> int:
        """Two for an even length, one for an odd one."""
        return 2 - self.seq_len % 2

    @functools.cached_property
    def length(self) -> int:
        """Folded tokens L."""
        return cdiv(self.seq_len, self.parities**2)

    @functools.cached_property
    def block(self) -> int:
        """Modes of a parity that one program takes, a power of two."""
        return min(_BLOCK, padded(self.modes))

    @functools.cached_property
    def modes(self) -> int:
        """Modes of the fuller parity."""
        return cdiv(self.kept, self.parities)

    @functools.cached_property
    def modes_padded(self) -> int:
        """MP: modes of a parity in whole blocks."""
        return cdiv(self.modes, self.block) * self.block

    @functools.cached_property
    def length_padded(self) -> int:
        """LP: folded tokens in rows of aligned length."""
        return cdiv(self.length, _LENGTH_STEP) * _LENGTH_STEP


def plan(seq_len: int, modes: int) -> Plan | None:
    """The plan for a length and a filter of ``modes`` modes; None where it would not pay."""
    kept = min(modes, seq_len // 2 + 1)
    return Plan(seq_len, kept) if kept <= MOST_MODES else None


@functools.cache
def matrix(plan: Plan, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, float]:
    """exp(-2 pi i m (n + 1/2) / N) as [parities, 2, MP, LP], zero at padding, times a gain."""
    first = torch.arange(plan.parities)[:, None, None]
    mode = first + plan.parities * torch.arange(plan.modes)[:, None]
    turns = mode * (2 * torch.arange(plan.length) + 1)
    exact = phases(turns, 2 * plan.seq_len) * (mode < plan.kept)
    shape = (plan.modes_padded, plan.length_padded)
    placed = place(exact, dtype, device, terms=1, shape=shape)
    return constant(torch.stack((placed.re, placed.im), 1)), placed.gain

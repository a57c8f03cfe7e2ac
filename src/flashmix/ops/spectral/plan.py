"""How a truncated transform is blocked, and its matrix.

Tokens of an even length N are folded first: even modes see x[n] + x[n + N/2] and odd ones
x[n] - x[n + N/2], n < N/2, so the modes fall into two classes of half the length each. An odd
length has one class. Mode m is number m // classes of class m % classes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from flashmix.ops._triton.matrices import Matrix, phases, place

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
    def classes(self) -> int:
        """Two for an even length, one for an odd one."""
        return 2 - self.seq_len % 2

    @functools.cached_property
    def length(self) -> int:
        """Folded tokens L."""
        return self.seq_len // self.classes

    @functools.cached_property
    def block(self) -> int:
        """Modes of a class that one program takes, a power of two."""
        return min(_BLOCK, max(16, 1 << (self.modes - 1).bit_length()))

    @functools.cached_property
    def modes(self) -> int:
        """Modes of the fuller class."""
        return -(-self.kept // self.classes)

    @functools.cached_property
    def modes_padded(self) -> int:
        """MP: modes of a class in whole blocks."""
        return -(-self.modes // self.block) * self.block

    @functools.cached_property
    def length_padded(self) -> int:
        """LP: folded tokens in rows of aligned length."""
        return -(-self.length // _LENGTH_STEP) * _LENGTH_STEP


def plan(seq_len: int, modes: int) -> Plan | None:
    """The plan for a length and a filter of ``modes`` modes; None where it would not pay."""
    kept = min(modes, seq_len // 2 + 1)
    return Plan(seq_len, kept) if kept <= MOST_MODES else None


@functools.cache
def matrix(plan: Plan, dtype: torch.dtype, device: torch.device) -> Matrix:
    """exp(-2 pi i m n / N) of both classes, [classes, MP, LP], zero at padding."""
    first = torch.arange(plan.classes)[:, None, None]
    mode = first + plan.classes * torch.arange(plan.modes)[:, None]
    exact = phases(mode * torch.arange(plan.length), plan.seq_len) * (mode < plan.kept)
    shape = (plan.modes_padded, plan.length_padded)
    return place(exact, dtype, device, terms=1, shape=shape)

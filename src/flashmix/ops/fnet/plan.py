"""How a transform is cut into digits, and the matrices of each.

Tokens: N = N1 * N2, n = n1 * N2 + n2, k = k1 + N1 * k2. N1 is even: real input makes the planes
k1 and N1 - k1 conjugate, so k1 = 0 .. N1/2 are enough, and 0 and N1/2 share one (see
``matrices.real_dft``). All others are turned by exp(-2 pi i (k1 / N1 - 1/2) n2 / N2) on the way, so
that frequencies k2 + 1/2 are left, which pair off: Re sum_n2 t exp(-2 pi i (k2 + 1/2) n2 / N2) is
P + Q at k2 and P - Q at N2 - 1 - k2, with P the cosines of Re t and Q the sines of Im t.
Width: D = D1 * D2, d = d1 * D2 + d2, j = j1 + D1 * j2.
A tile's sides are powers of two; a P after a name is its size padded to one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from flashmix.ops._compile import constant_in_graphs
from flashmix.ops._triton import tuning
from flashmix.ops._triton.launch import MOST_OFFSET, SMALLEST, divisors, padded
from flashmix.ops._triton.matrices import Matrix, dft, phases, place, real_dft

_MOST_PLANES = 64
_MOST_DIGIT = 64
_HEAD_TILE = 1 << 15
_MOST_ROWS = 1024
_SHORT_TAIL = 128


@dataclass(frozen=True)
class Plan:
    """The digits of one shape."""

    n1: int
    n2: int
    d1: int
    d2: int

    @functools.cached_property
    def seq_len(self) -> int:
        """Tokens N."""
        return self.n1 * self.n2

    @functools.cached_property
    def dim(self) -> int:
        """Width D."""
        return self.d1 * self.d2

    @functools.cached_property
    def half(self) -> int:
        """Complex planes kept of the first token digit."""
        return self.n1 // 2

    @functools.cached_property
    def half_padded(self) -> int:
        """Rows of the head's product for each of the real and imaginary parts."""
        return max(SMALLEST // 4, 1 << (self.half - 1).bit_length())

    @functools.cached_property
    def rows(self) -> int:
        """Folded rows n2 of a plane: 0 to N2 / 2."""
        return self.n2 // 2 + 1

    @functools.cached_property
    def pairs(self) -> int:
        """Pairs k2 and N2 - 1 - k2; terms of the sum over n2 of each."""
        return (self.n2 + 1) // 2


@functools.cache
def widths(dim: int) -> list[tuple[int, int]]:
    """Every D1 and D2 whose padded tile is the smallest, the least arithmetic first."""
    options = [
        (padded(d1) * padded(dim // d1), padded(d1) + padded(dim // d1), d1)
        for d1 in divisors(dim)
        if d1 <= _MOST_DIGIT and dim // d1 <= _MOST_DIGIT
    ]
    return [(d1, dim // d1) for tile, _, d1 in sorted(options) if tile == min(options)[0]]


def split_width(dim: int) -> tuple[int, int] | None:
    """The first of ``widths``; None without any."""
    return next(iter(widths(dim)), None)


@functools.cache
def _row(dim: int) -> int:
    """Padded width of a tile."""
    width = split_width(dim)
    return 0 if width is None else padded(width[0]) * padded(width[1])


def _tile(dtype: torch.dtype) -> int:
    """Elements of the head's tile that registers and shared memory hold."""
    return _HEAD_TILE // (2 if dtype == torch.float32 else 1)


def plans(seq_len: int, dim: int, dtype: torch.dtype) -> list[Plan]:
    """Every way to cut a shape that the kernels take, the one with the least padding first."""
    if seq_len % 2 or seq_len * dim >= MOST_OFFSET:
        return []
    options = []
    for n1 in divisors(seq_len):
        n2 = seq_len // n1
        if n1 % 2 or n1 > _MOST_PLANES or n2 > _MOST_ROWS:
            continue
        if padded(n1) * _row(dim) > _tile(dtype):
            continue
        for order, width in enumerate(widths(dim)):
            one = Plan(n1, n2, *width)
            waste = padded(n1) * padded(one.pairs)
            options.append((waste, max(n2, _SHORT_TAIL), padded(n1), order, one))
    return [option[-1] for option in sorted(options, key=lambda option: option[:-1])]


@functools.cache
def plan(seq_len: int, dim: int, dtype: torch.dtype) -> Plan | None:
    """The digits for a shape, or None where it has none that the kernels take."""
    found = plans(seq_len, dim, dtype)
    tuned = tuning.nearest("fnet", {"seq_len": seq_len, "dim": dim})
    if tuned is not None and dtype != torch.float32:
        found.sort(key=lambda one: (one.n1 != tuned["n1"], one.d1 != tuned["d1"]))
    return next(iter(found), None)


@constant_in_graphs
def width_unsupported_reason(dim: int) -> str | None:
    """Why a width has no two digits for a tile, or None."""
    return None if split_width(dim) else f"has no factors of D = {dim} that fit its tiles"


def describe_plan(seq_len: int, dim: int, dtype: torch.dtype) -> str | None:
    """The digits that a shape is cut into, in words."""
    found = plan(seq_len, dim, dtype)
    if found is None:
        return None
    return f"N = {found.n1} * {found.n2}, D = {found.d1} * {found.d2}"


@constant_in_graphs
def plan_unsupported_reason(seq_len: int | None, dim: int, dtype: torch.dtype) -> str | None:
    """Why a shape has no plan, or None; with ``seq_len`` None, whether the width alone has."""
    if split_width(dim) is None or padded(2) * _row(dim) > _tile(dtype):
        return f"has no factors of D = {dim} that fit its tiles"
    if seq_len is not None and plan(seq_len, dim, dtype) is None:
        return (
            f"takes N that is even and a product of factors that fit its tiles, not N = {seq_len}; "
            "impl='triton_columns' takes longer ones, impl='torch' any"
        )
    return None


@dataclass(frozen=True)
class Matrices:
    """The matrices of a plan on one device.

    ``head`` is [R, 2, HP, N1P] (``re`` alone), one for each folded row n2. ``pairs`` is [2, KP,
    KP], cosines (n2 from 0) and sines (n2 from 1): of (k2 + 1) n2 for plane 0, and of
    (k2 + 1/2) n2 for all others.
    """

    head: Matrix
    width_1: Matrix
    width_twiddle: Matrix
    width_2: Matrix
    pairs: Matrix

    @property
    def gain(self) -> float:
        """What the planes come out multiplied by."""
        return self.head.gain * self.width_1.gain * self.width_2.gain


def _head(plan: Plan) -> torch.Tensor:
    """Real parts of the planes, then imaginary ones, of every folded row n2, [R, 2 HP, N1P]."""
    n1, n2 = plan.n1, torch.arange(plan.rows)[:, None, None]
    k1 = torch.arange(plan.half)[:, None]
    turn = phases((2 * k1 - n1) * n2, 2 * plan.seq_len)
    # Rows that are their own mirror image would count twice in the tail's sum.
    own = torch.where((n2 == 0) | (2 * n2 == plan.n2), 0.5, 1.0)
    rows = own * torch.where(k1 == 0, 1.0, turn) * real_dft(n1)
    padding = (0, padded(n1) - n1, 0, plan.half_padded - plan.half)
    return torch.cat([F.pad(part, padding) for part in (rows.real, rows.imag)], dim=1)


@functools.cache
def matrices(plan: Plan, dtype: torch.dtype, device: torch.device) -> Matrices:
    """The matrices of ``plan``, exact on the host and rounded to ``dtype``."""
    d1, d2, n2 = plan.d1, plan.d2, plan.n2
    d1p, d2p, side = padded(d1), padded(d2), padded(plan.pairs)

    def rounded(exact: torch.Tensor, terms: int, shape: tuple[int, int]) -> Matrix:
        return place(exact, dtype, device, terms=terms, shape=shape)

    head = _head(plan)
    n = torch.arange(plan.pairs)
    twice = torch.stack([2 * n + 2, 2 * n + 1])[:, :, None]  # of k2 + 1 and k2 + 1/2
    pairs = torch.complex(phases(-twice * n, 2 * n2).real, phases(-twice * (n + 1), 2 * n2).imag)
    twiddle = phases(torch.arange(d2)[:, None] * torch.arange(d1), plan.dim)
    return Matrices(
        head=rounded(
            torch.complex(head, 0 * head), plan.n1, (2 * plan.half_padded, padded(plan.n1))
        ),
        width_1=rounded(dft(d1), d1, (d1p, d1p)),
        width_twiddle=place(twiddle, torch.float32, device, shape=(d2p, d1p)),
        width_2=rounded(dft(d2), d2, (d2p, d2p)),
        pairs=rounded(pairs, n2, (side, side)),
    )

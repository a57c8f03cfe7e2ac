"""How a transform is cut into digits, and the matrices of each.

Tokens: N = N1 * N2, n = n1 * N2 + n2, k = k1 + N1 * k2. N1 is even: real input makes the planes
k1 and N1 - k1 conjugate, so k1 = 0 .. N1/2 are enough, and 0 and N1/2 share one (see
``matrices.real_dft``). Where N2 is too large for one product, N2 = NA * NB in the same way:
n2 = na * NB + nb, k2 = ka + NA * kb.
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
_HEAD_TILE = 1 << 15
_DENSE_TAIL = 128
_TAIL_TILE = 1 << 14


@dataclass(frozen=True)
class Plan:
    """The digits of one shape."""

    n1: int
    na: int
    nb: int
    d1: int
    d2: int

    @functools.cached_property
    def n2(self) -> int:
        """The second token digit as a whole."""
        return self.na * self.nb

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
        return max(SMALLEST // 2, 1 << (self.half - 1).bit_length())

    @functools.cached_property
    def rows(self) -> int:
        """Folded rows n2 of a plane: 0 to N2 / 2."""
        return self.n2 // 2 + 1

    @functools.cached_property
    def sum_a(self) -> int:
        """Digits na that the tail's product sums over; with N2 even, row N2 / 2 is added apart."""
        return (self.na + 1) // 2


@functools.cache
def split_width(dim: int) -> tuple[int, int] | None:
    """D1 and D2 with the smallest padded tile, then the least arithmetic; None without any."""
    options = [
        (padded(d1) * padded(dim // d1), padded(d1) + padded(dim // d1), d1)
        for d1 in divisors(dim)
        if d1 <= 64 and dim // d1 <= 64
    ]
    if not options:
        return None
    d1 = min(options)[2]
    return d1, dim // d1


@functools.cache
def _row(dim: int) -> int:
    """Padded width of a tile."""
    width = split_width(dim)
    return 0 if width is None else padded(width[0]) * padded(width[1])


def _split_tail(n2: int) -> tuple[int, int] | None:
    """NA and NB; NB = 1 where one dense product does."""
    if n2 <= _DENSE_TAIL:
        return n2, 1
    options = [
        (padded(na // 2) * padded(n2 // na), padded(na) + padded(n2 // na), na)
        for na in divisors(n2)
        if na <= 64 and n2 // na <= 64 and na % 2 == 0
    ]
    options = [option for option in options if option[0] * SMALLEST <= _TAIL_TILE]
    if not options:
        return None
    na = min(options)[2]
    return na, n2 // na


def _tile(dtype: torch.dtype) -> int:
    """Elements of the head's tile that registers and shared memory hold."""
    return _HEAD_TILE // (2 if dtype == torch.float32 else 1)


def plans(seq_len: int, dim: int, dtype: torch.dtype) -> list[Plan]:
    """Every way to cut a shape that the kernels take, the one with the least padding first."""
    width = split_width(dim)
    if width is None or seq_len % 2 or seq_len * dim >= MOST_OFFSET:
        return []
    options = []
    for n1 in divisors(seq_len):
        tail = _split_tail(seq_len // n1)
        if n1 % 2 or n1 > _MOST_PLANES or padded(n1) * _row(dim) > _tile(dtype) or tail is None:
            continue
        waste = padded(n1) * padded(tail[0]) * (padded(tail[1]) if tail[1] > 1 else 1)
        options.append((waste, tail[1], padded(n1), Plan(n1, *tail, *width)))
    return [option[-1] for option in sorted(options, key=lambda option: option[:-1])]


@functools.cache
def plan(seq_len: int, dim: int, dtype: torch.dtype) -> Plan | None:
    """The digits for a shape, or None where it has none that the kernels take."""
    found = plans(seq_len, dim, dtype)
    tuned = tuning.nearest("fnet", {"seq_len": seq_len, "dim": dim})
    planes = None if tuned is None or dtype == torch.float32 else tuned["n1"]
    return next((one for one in found if one.n1 == planes), found[0] if found else None)


@constant_in_graphs
def unsplit(dim: int) -> str | None:
    """Why a width has no two digits for a tile, or None."""
    return None if split_width(dim) else f"has no factors of D = {dim} that fit its tiles"


def road(seq_len: int, dim: int, dtype: torch.dtype) -> str | None:
    """The digits that a shape is cut into, in words."""
    found = plan(seq_len, dim, dtype)
    if found is None:
        return None
    tokens = [found.n1, found.na, *((found.nb,) if found.nb > 1 else ())]
    return f"N = {' * '.join(map(str, tokens))}, D = {found.d1} * {found.d2}"


@constant_in_graphs
def unplanned(seq_len: int | None, dim: int, dtype: torch.dtype) -> str | None:
    """Why a shape has no plan, or None; with ``seq_len`` None, whether the width alone has."""
    if split_width(dim) is None or padded(2) * _row(dim) > _tile(dtype):
        return f"has no factors of D = {dim} that fit its tiles"
    if seq_len is not None and plan(seq_len, dim, dtype) is None:
        return (
            f"takes N that is even and a product of factors that fit its tiles, not N = {seq_len}; "
            "impl='triton_columns' takes longer ones, impl='bluestein' any"
        )
    return None


@dataclass(frozen=True)
class Matrices:
    """The matrices of a plan on one device; ``gain`` is the product of their scales."""

    head: Matrix
    width_1: Matrix
    width_twiddle: Matrix
    width_2: Matrix
    tail_a: Matrix
    tail_twiddle: Matrix
    tail_b: Matrix
    tail_middle: Matrix

    @property
    def gain(self) -> float:
        """What a transform comes out multiplied by."""
        gain = 1.0
        for matrix in (self.head, self.width_1, self.width_2, self.tail_a, self.tail_b):
            gain *= matrix.gain
        return gain


@functools.cache
def matrices(plan: Plan, dtype: torch.dtype, device: torch.device) -> Matrices:
    """The matrices of ``plan``, exact on the host and rounded to ``dtype``."""
    d1, d2, n1, na, nb = plan.d1, plan.d2, plan.n1, plan.na, plan.nb
    d1p, d2p, nap, nbp = padded(d1), padded(d2), padded(na), padded(nb)
    a = torch.arange(plan.sum_a)
    plane = torch.arange(plan.half + 1)[:, None, None]
    first = plane + n1 * torch.arange(na)[:, None]

    def rounded(exact: torch.Tensor, terms: int, shape: tuple[int, int]) -> Matrix:
        return place(exact, dtype, device, terms=terms, shape=shape)

    def exactly(exact: torch.Tensor, shape: tuple[int, int]) -> Matrix:
        return place(exact, torch.float32, device, shape=shape)

    head = real_dft(n1)
    padding = (0, padded(n1) - n1, 0, plan.half_padded - plan.half)
    head = torch.cat([F.pad(plane, padding) for plane in (head.real, head.imag)])
    tail_a = rounded(phases(first * a, n1 * na), na, (nap, padded(plan.sum_a)))
    tail_b = rounded(dft(nb), nb, (nbp, nbp))
    middle = phases(torch.arange(plan.half + 1)[None], 2 * n1)
    return Matrices(
        head=rounded(torch.complex(head, 0 * head), n1, (2 * plan.half_padded, padded(n1))),
        width_1=rounded(dft(d1), d1, (d1p, d1p)),
        width_twiddle=exactly(
            phases(torch.arange(d2)[:, None] * torch.arange(d1), plan.dim), (d2p, d1p)
        ),
        width_2=rounded(dft(d2), d2, (d2p, d2p)),
        tail_a=tail_a,
        tail_twiddle=exactly(phases(first * torch.arange(nb), plan.seq_len), (nap, nbp)),
        tail_b=tail_b,
        tail_middle=exactly(middle * (tail_a.gain * tail_b.gain), (1, plan.half + 1)),
    )

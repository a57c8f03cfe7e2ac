"""How a length is cut into digits for transforms along tokens, and the matrices of each.

N = N1 * N2, n = n1 * N2 + n2, k = k1 + N1 * k2. N1 is even and the input real, so the planes
k1 = 0 .. H = N1 / 2 are enough. Where N2 is too large for one product, N2 = NA * NB in the same
way: n2 = na * NB + nb, k2 = ka + NA * kb; otherwise NA = 1.
A tile's sides are powers of two; a P after a name is its size padded to one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from flashmix.ops._compile import constant_in_graphs
from flashmix.ops._triton.launch import MOST_OFFSET, divisors, padded
from flashmix.ops._triton.matrices import Matrix, dft, phases, place, real_dft

MOST_DIGIT = 128
"""The largest digit: matrices of twice that side fill shared memory."""


@dataclass(frozen=True)
class Digits:
    """The digits of one length."""

    n1: int
    na: int
    nb: int

    @functools.cached_property
    def n2(self) -> int:
        """The second digit as a whole."""
        return self.na * self.nb

    @functools.cached_property
    def seq_len(self) -> int:
        """Tokens N."""
        return self.n1 * self.n2

    @functools.cached_property
    def half(self) -> int:
        """H: the last plane of the first digit."""
        return self.n1 // 2

    @functools.cached_property
    def half_padded(self) -> int:
        """HP: rows of the first product, planes 0 to H - 1."""
        return padded(self.half)

    @functools.cached_property
    def lines(self) -> int:
        """Rows nb that are transformed together: one set for each plane and each ka."""
        return (self.half + 1) * self.na

    def __str__(self) -> str:
        parts = [self.n1, *((self.na,) if self.na > 1 else ()), self.nb]
        return f"{self.seq_len} = {' * '.join(map(str, parts))}"


def options(seq_len: int) -> Iterator[Digits]:
    """Every way to cut a length; none for an odd one, or one with a large prime factor."""
    for n1 in divisors(seq_len):
        n2 = seq_len // n1
        if n1 % 2 or n1 > MOST_DIGIT:
            continue
        if n2 <= MOST_DIGIT:
            yield Digits(n1, 1, n2)
            continue
        for na in divisors(n2):
            if 1 < na <= MOST_DIGIT and 1 < n2 // na <= MOST_DIGIT:
                yield Digits(n1, na, n2 // na)


def _cost(one: Digits) -> tuple[float, ...]:
    """Passes, arithmetic on padding, the largest tile; the lines' tile, whose program does most."""
    sides = [2 * one.half_padded, padded(one.nb), *([padded(one.na)] if one.na > 1 else [])]
    waste = 1.0
    for side in sides:
        waste *= side
    return one.na > 1, waste / one.seq_len, max(sides), padded(one.nb), padded(one.na), one.n1


@functools.cache
def digits(seq_len: int) -> Digits | None:
    """How a length is cut, or None where it has no factors that fit the tiles."""
    return min(options(seq_len), key=_cost, default=None)


@functools.cache
def longer(seq_len: int) -> Digits | None:
    """The digits of the least convenient length that holds ``seq_len``; None beyond all of them."""
    reach = max(16, 1 << (seq_len - 1).bit_length())
    sizes = sorted({part * reach // 16 for part in range(9, 17)})
    found = (digits(size) for size in sizes if size >= seq_len)
    return next((one for one in found if one is not None), None)


@dataclass(frozen=True)
class Matrices:
    """The matrices of a cut on one device, each 1/sqrt(terms) or so of the exact one."""

    analysis: Matrix
    synthesis: Matrix
    digit_a: Matrix
    digit_b: Matrix
    planes_twiddle: Matrix
    last_twiddle: Matrix
    twiddle: Matrix
    stage_twiddle: Matrix

    @property
    def forward_gain(self) -> float:
        """What the transform of a real signal comes out multiplied by."""
        return self.analysis.gain * self.digit_a.gain * self.digit_b.gain

    @property
    def gain(self) -> float:
        """What a signal transformed there and back comes out multiplied by, beside N."""
        return self.forward_gain * self.digit_a.gain * self.digit_b.gain * self.synthesis.gain


@functools.cache
def matrices(cut: Digits, dtype: torch.dtype, device: torch.device) -> Matrices:
    """The matrices of ``cut``, exact on the host and rounded to ``dtype``."""
    n1, na, nb = cut.n1, cut.na, cut.nb
    n1p, hp = padded(n1), cut.half_padded
    plane, n2 = torch.arange(cut.half + 1), torch.arange(cut.n2)

    def rounded(exact: torch.Tensor, terms: int, shape: tuple[int, int]) -> Matrix:
        return place(exact, dtype, device, terms=terms, shape=shape)

    def exactly(exact: torch.Tensor) -> Matrix:
        return place(exact, torch.float32, device)

    rows = real_dft(n1)
    packed = torch.complex(rows.real, rows.imag)
    back = packed.clone()
    back[1:] *= 2
    side_a, side_b = (padded(na), padded(na)), (padded(nb), padded(nb))
    turned = phases(n2[:, None] * plane, cut.seq_len)
    inner = phases(torch.arange(na)[:, None] * torch.arange(nb), cut.n2)
    return Matrices(
        analysis=rounded(packed, n1, (hp, n1p)),
        synthesis=rounded(back.T.contiguous(), n1, (n1p, hp)),
        digit_a=rounded(dft(na), na, side_a),
        digit_b=rounded(dft(nb), nb, side_b),
        planes_twiddle=place(turned[:, : cut.half], torch.float32, device, shape=(cut.n2, hp)),
        last_twiddle=exactly(turned[:, cut.half :]),
        twiddle=exactly(turned.T.contiguous()),
        stage_twiddle=exactly(inner),
    )


@constant_in_graphs
def length_unsupported_reason(seq_len: int) -> str | None:
    """Why a length has no digits; None where it has."""
    if digits(seq_len) is not None:
        return None
    return f"takes N that is even and a product of small factors, not N = {seq_len}"


@constant_in_graphs
def size_unsupported_reason(seq_len: int, dim: int) -> str | None:
    """Why sequences [N, D] and filters on them are beyond the kernels; None where they are not."""
    cut = digits(seq_len) or longer(2 * seq_len - 1)
    if cut is None:
        return f"takes N up to {MOST_DIGIT**3 // 2} where N is odd or has a large factor"
    # Offsets within the planes of a sequence, about half of it for each part.
    if max(seq_len, cut.seq_len // 2 + cut.n2) * dim >= MOST_OFFSET:
        return f"takes N * D below {MOST_OFFSET}, not {seq_len * dim}"
    return None

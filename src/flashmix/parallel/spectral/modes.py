"""Spectral filtering across ranks.

A filter cut to few modes needs no exchange of tokens: each rank analyses its slice at its place in
the sequence, the modes are summed across the ranks, and each rank synthesises its slice. Other
filters exchange tokens for channels and run the operator on whole columns.

A slice is cut into chunks of C tokens, which one matrix transforms as if each began the sequence;
a factor for each mode and chunk turns them to where they stand. On GPUs half types are multiplied
as they are and summed in float32; all other products are in the dtype of the modes.

Shapes: B batch, n own tokens, N all tokens, D channels, K modes in use, Q chunks at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashmix.ops._padding import pack, real_first, unpack, zero_padding
from flashmix.ops._precision import full_precision, transform_dtype
from flashmix.ops._triton.matrices import phases
from flashmix.ops.spectral.filter import filter_for_length
from flashmix.ops.spectral.plan import MOST_MODES
from flashmix.parallel.comm.collectives import all_sum, reduce_backward, reduce_forward
from flashmix.parallel.comm.graphs import cached
from flashmix.parallel.comm.layout import Layout

CHUNK_TOKENS = {"cpu": 512, "cuda": 4_096}
"""Tokens of one product with the truncated Fourier matrix."""
MAX_BATCHED_CHUNKS = {"cpu": 1, "cuda": 16}
"""Most chunks in one launch: their modes are kept beside each other until they are summed."""


def modes_in_use(modes: int, length: int) -> int:
    """How many of ``modes`` a sequence of ``length`` tokens has."""
    return min(modes, length // 2 + 1)


def few_modes(modes: int, layout: Layout) -> bool:
    """Whether an all-reduce of the modes is cheaper than an exchange of channels."""
    kept = modes_in_use(modes, layout.total)
    return kept <= MOST_MODES and 2 * kept * layout.ranks.size <= layout.total


def filter_by_modes(
    x: Tensor, weight: Tensor, bias: Tensor | None, unitary: bool, layout: Layout, whole: bool
) -> Tensor:
    """irfft(W * rfft(x)) + b of all tokens, of which ``x`` and the result [B, n, D] are a slice.

    Args:
        x: [B, n, D].
        weight: W, real [M, D, 2].
        bias: b, [D], or None.
        unitary: pass the higher modes unchanged, as :func:`flashmix.ops.spectral` does.
        layout: of the tokens.
        whole: every rank gets the whole gradients of W and b, which cost no message; else the part
            that its slice has in them.
    """
    mask = layout.own_mask
    weight = weight.to(transform_dtype(x.dtype, weight.dtype))
    order = None if mask is None else real_first(mask)
    tokens = x if order is None else pack(zero_padding(x, mask), order)
    parts = list(group_by_length(layout, weight.shape[0]))
    reduce = reduce_forward if whole else all_sum
    modes = reduce(Analyse.apply(tokens, parts, weight.dtype), layout.ranks)
    modes = apply_filter(modes, weight, bias, unitary, parts)
    if whole:
        modes = reduce_backward(modes, layout.ranks)
    higher = tokens if unitary else None  # the modes above pass
    y = Synthesise.apply(modes, higher, parts, x.shape[1], x.dtype)
    return y if order is None else zero_padding(unpack(y, order), mask)


@dataclass(frozen=True)
class LengthGroup:
    """Sequences of one true length.

    Attributes:
        rows: which of the batch.
        length: their tokens across all ranks.
        start: where each one's slice begins; int64 [rows] where they differ.
        kept: modes in use.
    """

    rows: Tensor | slice
    length: int
    start: int | Tensor
    kept: int


def group_by_length(layout: Layout, modes: int) -> Iterator[LengthGroup]:
    """The sequences by true length; those without a token are left out.

    Where none has a token, no row is what comes: gradients, which are zero, take the same path.
    """
    if layout.mask is None:
        kept = min(modes, layout.total // 2 + 1)
        yield LengthGroup(slice(None), layout.total, layout.own.start, kept)
        return
    lengths = layout.mask.sum(1)
    before = layout.mask[:, : layout.own.start].sum(1)
    for length in [length for length in lengths.unique().tolist() if length] or [1]:
        rows = (lengths == length).nonzero().squeeze(1)
        yield LengthGroup(rows, length, before[rows], min(modes, length // 2 + 1))


def apply_filter(
    modes: Tensor, weight: Tensor, bias: Tensor | None, unitary: bool, parts: list[LengthGroup]
) -> Tensor:
    """Modes [B, K, D, 2] as the inverse transform takes them: weighted, the bias in the lowest."""
    spectrum = torch.view_as_complex(modes)
    if _unpadded(parts):
        y = spectrum * _factors(weight, parts[0].length, unitary)
        if bias is not None:
            y[:, 0] += bias
        return torch.view_as_real(y)
    y = torch.zeros_like(spectrum)
    for one in parts:
        factors = _factors(weight, one.length, unitary)
        y[one.rows, : one.kept] = spectrum[one.rows, : one.kept] * factors
        if bias is not None:
            y[one.rows, 0] += bias
    return torch.view_as_real(y)


def _unpadded(parts: list[LengthGroup]) -> bool:
    """Whether no sequence has padding."""
    return len(parts) == 1 and isinstance(parts[0].rows, slice)


def _factors(weight: Tensor, length: int, unitary: bool) -> Tensor:
    """What each mode [K, D] is multiplied by, with the inverse transform's own factors."""
    factors = filter_for_length(weight, length, unitary)
    own = _inverse_factors(length, len(factors), weight.dtype, weight.device)
    return (factors - 1 if unitary else factors) * own


@cached(maxsize=32)
def _inverse_factors(length: int, kept: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of the inverse transform, [K, 1]: every mode but the self-conjugate ones counts twice."""
    with torch.inference_mode(False):  # autograd saves it, whoever asks first
        mode = torch.arange(kept)
        multiplicity = torch.where((mode == 0) | (2 * mode == length), 1.0, 2.0).double()[:, None]
        return (multiplicity / length).to(device, dtype)


@cached(maxsize=8)
def fourier_matrix(
    length: int, kept: int, chunk: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """exp(-2 pi i m j / length) as its real parts above its imaginary ones, [2 K, C]."""
    exact = phases(torch.arange(kept)[:, None] * torch.arange(min(chunk, length)), length)
    return torch.cat((exact.real, exact.imag)).to(device, dtype)


@dataclass(frozen=True)
class _Chunks:
    """``count`` chunks of ``size`` tokens from the token ``first`` of a slice on."""

    first: int
    count: int
    size: int

    @property
    def tokens(self) -> slice:
        return slice(self.first, self.first + self.count * self.size)

    def of(self, x: Tensor, one: LengthGroup) -> Tensor:
        """Their tokens of ``x`` [B, n, D], [rows, Q, C, D]."""
        return x[one.rows, self.tokens].unflatten(1, (self.count, self.size))


def _chunks(tokens: int, place: str) -> Iterator[_Chunks]:
    """As many chunks at a time as there may be; a shorter one comes last."""
    first, size, most = 0, CHUNK_TOKENS[place], MAX_BATCHED_CHUNKS[place]
    while first < tokens:
        left = tokens - first
        some = _Chunks(first, max(1, min(most, left // size)), min(size, left))
        yield some
        first = some.tokens.stop


def _twiddle(one: LengthGroup, some: _Chunks, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(-2 pi i m s / length) at the token s where each chunk begins: [rows or 1, Q, K, 1]."""
    if isinstance(one.start, int):
        first = one.start + some.first
        return _twiddle_from(first, some.count, some.size, one.length, one.kept, dtype, device)
    begin = some.first + some.size * torch.arange(some.count, device=device)
    mode = torch.arange(one.kept, device=device)
    exact = phases((one.start[:, None] + begin)[..., None] * mode, one.length)
    return exact.to(dtype.to_complex())[..., None]


@cached(maxsize=64)
def _twiddle_from(
    first: int,
    count: int,
    size: int,
    length: int,
    kept: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    begin = first + size * torch.arange(count)
    exact = phases(begin[:, None] * torch.arange(kept), length)
    return exact.to(device, dtype.to_complex())[None, ..., None]


def _operand(tokens: torch.dtype, modes: torch.dtype, device: torch.device) -> torch.dtype:
    """What products are made of: tokens of half types as they are where sums can be float32."""
    half = device.type == "cuda" and tokens.itemsize == 2 and modes == torch.float32
    return tokens if half else modes


def _forward_product(matrix: Tensor, chunks: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix [2 K, C] times each chunk [rows, Q, C, D], in ``dtype``."""
    with full_precision(chunks.device):
        if chunks.dtype == dtype:
            return matrix @ chunks
        flat = chunks.flatten(0, 1)
        sums = torch.bmm(matrix.expand(len(flat), -1, -1), flat, out_dtype=dtype)
        return sums.unflatten(0, chunks.shape[:2])


def _inverse_product(matrix: Tensor, both: Tensor, base: Tensor | None, length: int) -> Tensor:
    """Chunks [rows, Q, C, D] of modes [rows, Q, 2 K, D], real parts above imaginary ones.

    Half types are rounded once, ``base`` [rows, Q, C, D] included; others come as they are.
    """
    back, flat = matrix.T.expand(both.shape[0] * both.shape[1], -1, -1), both.flatten(0, 1)
    shape = (*both.shape[:2], matrix.shape[1], both.shape[3])
    with full_precision(both.device):
        if matrix.dtype == both.dtype:
            waves = torch.bmm(back, flat).view(shape)
            return waves if base is None else waves + base
        # Modes shrink like 1 / sqrt(N): this lifts them off float16's smallest numbers.
        lift = 2.0 ** round(math.log2(length) / 4)
        lifted = (flat * lift).to(matrix.dtype)
        onto = lifted.new_empty(1) if base is None else base.flatten(0, 1)
        waves = torch.baddbmm(onto, back, lifted, beta=int(base is not None), alpha=1 / lift)
        return waves.view(shape)


class Analyse(torch.autograd.Function):
    """The slice's part of the modes, real [B, K, D, 2]; its adjoint is :class:`Synthesise`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: list[LengthGroup], dtype: torch.dtype) -> Tensor:
        ctx.parts, ctx.count, ctx.dtype = parts, x.shape[1], x.dtype
        most = max((one.kept for one in parts), default=1)
        modes = x.new_zeros(len(x), most, x.shape[2], dtype=dtype.to_complex())
        place = x.device
        operand = _operand(x.dtype, dtype, place)
        for one in parts:
            matrix = fourier_matrix(one.length, one.kept, CHUNK_TOKENS[place.type], operand, place)
            for some in _chunks(min(x.shape[1], one.length), place.type):
                sums = _forward_product(matrix[:, : some.size], some.of(x, one).to(operand), dtype)
                found = torch.complex(*sums.split(one.kept, 2)) * _twiddle(one, some, dtype, place)
                modes[one.rows, : one.kept] += found.sum(1)
        return torch.view_as_real(modes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return Synthesise.apply(grad, None, ctx.parts, ctx.count, ctx.dtype), None, None


class Synthesise(torch.autograd.Function):
    """The slice's tokens [B, n, D] of ``modes`` [B, K, D, 2]: real parts of the sum of waves.

    ``base`` [B, n, D] is added where it is given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        modes: Tensor,
        base: Tensor | None,
        parts: list[LengthGroup],
        count: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.parts, ctx.dtype = parts, modes.dtype
        spectrum = torch.view_as_complex(modes.contiguous())
        y: Tensor | None = None
        place = modes.device
        operand = _operand(dtype, modes.dtype, place)
        for one in parts:
            matrix = fourier_matrix(one.length, one.kept, CHUNK_TOKENS[place.type], operand, place)
            for some in _chunks(min(count, one.length), place.type):
                twiddle = _twiddle(one, some, modes.dtype, place).conj()
                twiddled = spectrum[one.rows, None, : one.kept] * twiddle
                both = torch.cat((twiddled.real, twiddled.imag), 2)
                onto = None if base is None else some.of(base, one)
                waves = _inverse_product(matrix[:, : some.size], both, onto, one.length).flatten(
                    1, 2
                )
                if waves.shape[1] == count and _unpadded(parts):
                    return waves.to(dtype)
                if y is None:
                    y = modes.new_zeros(len(modes), count, modes.shape[2], dtype=dtype)
                y[one.rows, some.tokens] = waves.to(dtype)
        return modes.new_zeros(len(modes), count, modes.shape[2], dtype=dtype) if y is None else y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        base = grad if ctx.needs_input_grad[1] else None
        return Analyse.apply(grad, ctx.parts, ctx.dtype), base, None, None, None

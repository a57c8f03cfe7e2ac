"""Spectral filtering over ranks.

A filter cut to few modes needs no exchange of tokens: each rank analyses its slice at its place in
the sequence, the modes are summed over the ranks, and each rank synthesises its slice. Other
filters exchange tokens for channels and run the operator on whole columns.

Shapes: B batch, n own tokens, N all tokens, D channels, K modes in use, C tokens of a chunk.
"""

from __future__ import annotations

import functools
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
from flashmix.parallel._collectives import all_sum
from flashmix.parallel._layout import Layout

CHUNK = {"cpu": 512, "cuda": 32_768}
"""Tokens of one product with the truncated Fourier matrix."""


def modes_pay(modes: int, layout: Layout) -> bool:
    """Whether summing modes moves less than exchanging tokens, and dense products still pay."""
    kept = min(modes, layout.total // 2 + 1)
    return kept <= MOST_MODES and 2 * kept * layout.ranks.size <= layout.total


def by_modes(
    x: Tensor, weight: Tensor, bias: Tensor | None, unitary: bool, layout: Layout
) -> Tensor:
    """irfft(W * rfft(x)) + b of all tokens, of which ``x`` and the result [B, n, D] are a slice.

    Args:
        x: [B, n, D].
        weight: W, real [M, D, 2].
        bias: b, [D], or None.
        unitary: pass the higher modes unchanged, as :func:`flashmix.ops.spectral` does.
        layout: of the tokens.
    """
    mask = layout.own_mask
    weight = weight.to(transform_dtype(x.dtype, weight.dtype))
    order = None if mask is None else real_first(mask)
    tokens = x if order is None else pack(zero_padding(x, mask), order)
    parts = list(_sequences(layout, weight.shape[0], len(x), x.device))
    modes = all_sum(_Analyse.apply(tokens, parts, weight.dtype), layout.ranks)
    modes = _filtered(torch.view_as_complex(modes), weight, bias, unitary, parts)
    higher = tokens if unitary else None  # the modes above pass
    y = _Synthesise.apply(torch.view_as_real(modes), higher, parts, x.shape[1], x.dtype)
    return y if order is None else zero_padding(unpack(y, order), mask)


@dataclass(frozen=True)
class _Sequences:
    """Sequences of one true length.

    Attributes:
        rows: which of the batch.
        length: their tokens over all ranks.
        start: where each one's slice begins, int64 [rows].
        kept: modes in use.
    """

    rows: Tensor | slice
    length: int
    start: Tensor
    kept: int


def _sequences(
    layout: Layout, modes: int, batch: int, device: torch.device
) -> Iterator[_Sequences]:
    """The sequences by true length; those without a token are left out."""
    if layout.mask is None:
        start = torch.full((batch,), layout.own.start, device=device)
        yield _Sequences(slice(None), layout.total, start, min(modes, layout.total // 2 + 1))
        return
    lengths = layout.mask.sum(1)
    before = layout.mask[:, : layout.own.start].sum(1)
    for length in lengths.unique().tolist():
        if length:
            rows = (lengths == length).nonzero().squeeze(1)
            yield _Sequences(rows, length, before[rows], min(modes, length // 2 + 1))


def _filtered(
    modes: Tensor, weight: Tensor, bias: Tensor | None, unitary: bool, parts: list[_Sequences]
) -> Tensor:
    """Modes [B, K, D] as the inverse transform takes them: weighted, the bias in the lowest."""
    y = torch.zeros_like(modes)
    for one in parts:
        factors = _factors(weight, one.length, unitary)
        y[one.rows, : one.kept] = modes[one.rows, : one.kept] * factors
        if bias is not None:
            y[one.rows, 0] += bias
    return y


def _factors(weight: Tensor, length: int, unitary: bool) -> Tensor:
    """What each mode [K, D] is multiplied by, with the inverse transform's own factors."""
    factors = filter_for_length(weight, length, unitary)
    mode = torch.arange(len(factors), device=weight.device)
    # Every mode but the self-conjugate ones stands for itself and its mirror image.
    multiplicity = torch.where((mode == 0) | (2 * mode == length), 1.0, 2.0)[:, None]
    return (factors - 1 if unitary else factors) * (multiplicity.to(weight.dtype) / length)


@functools.lru_cache(maxsize=8)
def _matrix(length: int, kept: int, chunk: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(-2 pi i m j / length) as its real parts above its imaginary ones, [2 K, C]."""
    exact = phases(torch.arange(kept)[:, None] * torch.arange(min(chunk, length)), length)
    return torch.cat((exact.real, exact.imag)).to(device, dtype)


def _turn(one: _Sequences, first: int, dtype: torch.dtype) -> Tensor:
    """exp(-2 pi i m s / length) at the token s that stands at ``first``: [rows, K, 1]."""
    mode = torch.arange(one.kept, device=one.start.device)
    exact = phases((one.start + first)[:, None] * mode, one.length)
    return exact.to(dtype.to_complex())[..., None]


class _Analyse(torch.autograd.Function):
    """The slice's part of the modes, real [B, K, D, 2]; its adjoint is :class:`_Synthesise`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: list[_Sequences], dtype: torch.dtype) -> Tensor:
        ctx.parts, ctx.count, ctx.dtype = parts, x.shape[1], x.dtype
        most = max((one.kept for one in parts), default=1)
        modes = x.new_zeros(len(x), most, x.shape[2], dtype=dtype.to_complex())
        for one, matrix, some in _chunks(parts, x.shape[1], dtype, x.device):
            chunk = x[one.rows, some].to(dtype)
            with full_precision(x.device):
                real, imaginary = (matrix @ chunk).split(one.kept, 1)
            turn = _turn(one, some.start, dtype)
            modes[one.rows, : one.kept] += torch.complex(real, imaginary) * turn
        return torch.view_as_real(modes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Synthesise.apply(grad, None, ctx.parts, ctx.count, ctx.dtype), None, None


class _Synthesise(torch.autograd.Function):
    """The slice's tokens [B, n, D] of ``modes`` [B, K, D, 2]: real parts of the sum of waves.

    ``base`` [B, n, D] is added where it is given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        modes: Tensor,
        base: Tensor | None,
        parts: list[_Sequences],
        count: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.parts, ctx.dtype = parts, modes.dtype
        spectrum = torch.view_as_complex(modes.contiguous())
        y = modes.new_zeros(len(modes), count, modes.shape[2], dtype=dtype)
        for one, matrix, some in _chunks(parts, count, modes.dtype, modes.device):
            turned = spectrum[one.rows, : one.kept] * _turn(one, some.start, modes.dtype).conj()
            both = torch.cat((turned.real, turned.imag), 1)
            with full_precision(modes.device):
                waves = matrix.T @ both
            y[one.rows, some] = (waves if base is None else waves + base[one.rows, some]).to(dtype)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        base = grad if ctx.needs_input_grad[1] else None
        return _Analyse.apply(grad, ctx.parts, ctx.dtype), base, None, None, None


def _chunks(
    parts: list[_Sequences], count: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[_Sequences, Tensor, slice]]:
    """(sequences, the Fourier matrix [2 K, C] of some tokens, which of the slice)."""
    for one in parts:
        matrix = _matrix(one.length, one.kept, CHUNK[device.type], dtype, device)
        most = min(count, one.length)
        for first in range(0, most, CHUNK[device.type]):
            some = slice(first, min(first + CHUNK[device.type], most))
            yield one, matrix[:, : some.stop - some.start], some

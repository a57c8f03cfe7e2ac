"""Spectral filtering over ranks.

A filter cut to few modes needs no exchange of tokens: each rank analyses its slice at its place in
the sequence, the modes are summed over the ranks, and each rank synthesises its slice. Other
filters exchange tokens for channels and run the operator on whole columns.

Shapes: B batch, n own tokens, N all tokens, D channels, K modes in use, C tokens of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flashmix.ops._padding import pack, real_first, unpack, zero_padding
from flashmix.ops._precision import full_precision, transform_dtype
from flashmix.ops._triton.matrices import phases
from flashmix.ops.spectral.filter import filter_for_length
from flashmix.ops.spectral.plan import MOST_MODES
from flashmix.parallel._collectives import all_sum, exchange
from flashmix.parallel._layout import Layout
from flashmix.parallel._ranks import even_split, starts

CHUNK = 2048
"""Tokens of one product with the truncated Fourier matrix."""


def modes_pay(modes: int, layout: Layout) -> bool:
    """Whether summing modes moves less than exchanging tokens, and dense products still pay."""
    kept = min(modes, layout.total // 2 + 1)
    return kept <= MOST_MODES and 2 * kept * layout.ranks.size <= layout.total


def by_channels(
    run: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: Layout,
) -> Tensor:
    """``run(x, weight, bias)`` over all tokens, each rank for its share of the channels."""
    ranks, shares = layout.ranks, even_split(x.shape[2], layout.ranks.size)
    own = slice(starts(shares)[ranks.rank], starts(shares)[ranks.rank] + shares[ranks.rank])
    columns = exchange(x, ranks, (2, shares), layout.tokens(1))
    weight, bias = weight[:, own], None if bias is None else bias[own]
    if shares[ranks.rank]:
        y = run(columns, weight, bias)
    else:  # nothing to filter, but gradients flow on every rank
        y = columns + weight.sum() + (0 if bias is None else bias.sum())
    return exchange(y, ranks, layout.tokens(1), (2, shares))


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
    parts = list(_sequences(layout, len(x), x.device))
    kept = min(weight.shape[0], layout.total // 2 + 1)
    with full_precision(x.device):
        modes = weight.new_zeros(len(x), kept, x.shape[2], 2)
        for rows, length, start in parts:
            some = _analyse(tokens[rows], weight, length, start)
            modes[rows, : some.shape[1]] = some
        modes = torch.view_as_complex(all_sum(modes, layout.ranks))
        y = torch.zeros_like(tokens, dtype=weight.dtype)
        for rows, length, start in parts:
            factors = _factors(weight, length, unitary)
            y[rows] = _synthesise(modes[rows, : len(factors)] * factors, x.shape[1], length, start)
    if unitary:
        y = y + tokens
    if bias is not None:
        y = y + bias
    if order is not None:
        y = zero_padding(unpack(y, order), mask)
    return y.to(x.dtype)


def _sequences(
    layout: Layout, batch: int, device: torch.device
) -> Iterator[tuple[Tensor | slice, int, Tensor]]:
    """(sequences of one true length, that length, where each one's slice starts)."""
    if layout.mask is None:
        yield slice(None), layout.total, torch.full((batch,), layout.own.start, device=device)
        return
    lengths = layout.mask.sum(1)
    before = layout.mask[:, : layout.own.start].sum(1)
    for length in lengths.unique().tolist():
        if length:
            rows = (lengths == length).nonzero().squeeze(1)
            yield rows, length, before[rows]


def _factors(weight: Tensor, length: int, unitary: bool) -> Tensor:
    """What each mode [K, D] is multiplied by, with the inverse transform's own factors."""
    factors = filter_for_length(weight, length, unitary)
    mode = torch.arange(len(factors), device=weight.device)
    # Every mode but the self-conjugate ones stands for itself and its mirror image.
    multiplicity = torch.where((mode == 0) | (2 * mode == length), 1.0, 2.0)[:, None]
    return (factors - 1 if unitary else factors) * (multiplicity.to(weight.dtype) / length)


@functools.lru_cache(maxsize=8)
def _matrix(length: int, kept: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(-2 pi i m j / length) as its real parts above its imaginary ones, [2 K, C]."""
    exact = phases(torch.arange(kept)[:, None] * torch.arange(min(CHUNK, length)), length)
    return torch.cat((exact.real, exact.imag)).to(device, dtype)


def _turn(length: int, kept: int, start: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(-2 pi i m start / length), complex [rows, K, 1]."""
    mode = torch.arange(kept, device=start.device)
    exact = phases(start[:, None] * mode, length)
    return exact.to(dtype.to_complex())[..., None]


def _analyse(x: Tensor, weight: Tensor, length: int, start: Tensor) -> Tensor:
    """The slice's part of the modes, [rows, K, D, 2]; ``start`` is each row's first token."""
    kept = min(weight.shape[0], length // 2 + 1)
    matrix = _matrix(length, kept, weight.dtype, x.device)
    total = torch.zeros(len(x), kept, x.shape[2], dtype=weight.dtype.to_complex(), device=x.device)
    for first in range(0, min(x.shape[1], length), CHUNK):
        chunk = x[:, first : first + CHUNK].to(weight.dtype)[:, : matrix.shape[1]]
        real, imaginary = (matrix[:, : chunk.shape[1]] @ chunk).split(kept, 1)
        turn = _turn(length, kept, start + first, weight.dtype)
        total = total + torch.complex(real, imaginary) * turn
    return torch.view_as_real(total)


def _synthesise(modes: Tensor, count: int, length: int, start: Tensor) -> Tensor:
    """The slice's tokens [rows, n, D] of weighted complex ``modes`` [rows, K, D]."""
    kept = modes.shape[1]
    matrix = _matrix(length, kept, modes.real.dtype, modes.device)
    chunks = []
    for first in range(0, min(count, length), CHUNK):
        turned = modes * _turn(length, kept, start + first, modes.real.dtype).conj()
        both = torch.cat((turned.real, turned.imag), 1)
        size = min(CHUNK, count - first, matrix.shape[1])
        chunks.append(matrix[:, :size].T @ both)
    y = torch.cat(chunks, 1)
    return torch.nn.functional.pad(y, (0, 0, 0, count - y.shape[1]))

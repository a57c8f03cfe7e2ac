"""The modes of a slice and back again: a product and a kernel each, for as many chunks as pay.

Shapes: B batch, n own tokens, N all tokens, D channels, K modes in use, Q chunks at once; modes are
real parts above imaginary ones, [2 K, D].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flashmix.ops._triton.launch import cdiv, next_power_of_2
from flashmix.ops._triton.matrices import phases
from flashmix.ops.spectral.triton.kernels_ranks import collect_kernel, spread_kernel
from flashmix.parallel._graphs import cached
from flashmix.parallel._spectral import fourier_matrix

ANALYSIS = (4_096, 16)
"""Tokens of a chunk, and most chunks in one launch. Their sums, float32, lie beside each other."""
SYNTHESIS = (8_192, 8)
"""Likewise; what lies beside the result are the modes turned for each chunk, as operands."""

_NO_GRADIENTS = (None, None, None, None)
_TILE = 512
"""Elements of a program that works on modes."""
_MOST_COLUMNS = 256


class Place(NamedTuple):
    """Tokens [B, n, D] of a slice: where they stand, and the modes in use."""

    batch: int
    start: int
    tokens: int
    dim: int
    length: int
    kept: int


class Part(NamedTuple):
    """Chunks that one product takes: ``chunks`` in each of ``rows`` sequences.

    Attributes:
        row: the first of the sequences.
        turns: [chunks, 2, K], as ``kernels_ranks`` has them.
        matrix: exp(-2 pi i m j / N), [rows * chunks, 2 K, C]; as a view.
        shape, stride, offset: of the chunks [rows * chunks, C, D] among tokens [B, n, D].
        again: whether the sequences had a part before.
    """

    row: int
    rows: int
    chunks: int
    turns: Tensor
    matrix: Tensor
    shape: tuple[int, int, int]
    stride: tuple[int, int, int]
    offset: int
    again: bool

    def of(self, x: Tensor) -> Tensor:
        """Its chunks of tokens [B, n, D], which are contiguous."""
        return x.as_strided(self.shape, self.stride, x.storage_offset() + self.offset)


def _cut(batch: int, count: int, size: int, most: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(row, rows, first token, chunks, tokens of each) with one step between all chunks."""
    size = min(size, count)
    whole, tail = divmod(count, size)
    if whole <= most and not tail:
        rows = most // whole
        for row in range(0, batch, rows):
            yield row, min(rows, batch - row), 0, whole, size
        return
    if batch <= whole:
        for row in range(batch):
            for q in range(0, whole, most):
                yield row, 1, q * size, min(most, whole - q), size
    else:
        for row in range(0, batch, most):
            for q in range(whole):
                yield row, min(most, batch - row), q * size, 1, size
    if tail:
        for row in range(0, batch, most):
            yield row, min(most, batch - row), whole * size, 1, tail


@cached(maxsize=64)
def parts(
    place: Place, cut: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Part, ...]:
    """Of the slice, ``cut`` as :data:`ANALYSIS` is."""
    longest = max(ANALYSIS[0], SYNTHESIS[0])
    table = fourier_matrix(place.length, place.kept, longest, dtype, device)
    found: list[Part] = []
    for row, rows, first, chunks, tokens in _cut(place.batch, place.tokens, *cut):
        begin = place.start + first + tokens * torch.arange(chunks)
        turn = phases(begin[:, None] * torch.arange(place.kept), place.length)
        turns = torch.stack((turn.real, turn.imag), 1).float().to(device)
        step = tokens if chunks > 1 or rows == 1 else place.tokens
        found.append(
            Part(
                row,
                rows,
                chunks,
                turns,
                table[:, :tokens].expand(rows * chunks, -1, -1),
                (rows * chunks, tokens, place.dim),
                (step * place.dim, place.dim, 1),
                (row * place.tokens + first) * place.dim,
                first > 0,
            )
        )
    return tuple(found)


@functools.cache
def _grid(modes: int, dim: int) -> tuple[int, int, int, int]:
    """Programs along channels and modes; modes and channels of each."""
    columns = min(_MOST_COLUMNS, next_power_of_2(dim))
    rows = _TILE // columns
    return cdiv(dim, columns), cdiv(modes, rows), rows, columns


def analysed(x: Tensor, place: Place) -> Tensor:
    """The slice's part of the modes of contiguous tokens, float32 [B, 2 K, D]."""
    products = parts(place, ANALYSIS, x.dtype, x.device)
    shape = 2 * place.kept, place.dim
    modes = x.new_empty((place.batch, *shape), dtype=torch.float32)
    room = x.new_empty((_most(products), *shape), dtype=torch.float32)
    for part in products:
        sums = room if len(room) == part.shape[0] else room[: part.shape[0]]
        # Into a tensor that is there: autocast leaves such products as they are.
        if x.dtype == torch.float32:
            torch.bmm(part.matrix, part.of(x), out=sums)
        else:
            torch.bmm(part.matrix, part.of(x), torch.float32, out=sums)
        collect(sums, modes, part, place)
    return modes


def collect(sums: Tensor, modes: Tensor, part: Part, place: Place) -> None:
    """Turn the chunks' ``sums`` [rows * chunks, 2 K, D]; add them up to ``modes`` [B, 2 K, D]."""
    own = modes if part.rows == place.batch else modes[part.row :]
    across, down, *tile = _grid(place.kept, place.dim)
    collect_kernel[(across, down, part.rows)](
        sums, part.turns, own, part.chunks, place.kept, place.dim, part.again, *tile
    )


class Gradients(NamedTuple):
    """What the gradients of W and the bias come of, and where they go.

    Attributes:
        spectrum: of the input, over all ranks, [B, 2 K, D].
        upstream: of the output's gradient: over all ranks for their sum, else of this slice.
        weight: [M, D, 2].
        bias: [D], or None.
    """

    spectrum: Tensor
    upstream: Tensor
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Filter:
    """What modes are multiplied by on their way back.

    Attributes:
        weight: W, contiguous [M, D, 2].
        bias: b, contiguous [D], added to the lowest mode; or None.
        unitary: multiply by W - 1.
        conjugate: multiply by W's conjugate.
    """

    weight: Tensor
    bias: Tensor | None
    unitary: bool
    conjugate: bool = False


def synthesised(
    modes: Tensor,
    base: Tensor | None,
    by: Filter,
    place: Place,
    dtype: torch.dtype,
    gradients: Gradients | None = None,
) -> Tensor:
    """The slice's tokens [B, n, D] of filtered modes; ``gradients`` are written too.

    Args:
        modes: over all ranks, float32 [B, 2 K, D].
        base: tokens that are added, [B, n, D], or None.
        by: the filter.
        place: of the slice.
        dtype: of the result.
        gradients: of W and the bias, where they are asked for.
    """
    products = parts(place, SYNTHESIS, dtype, modes.device)
    room = modes.new_empty((_most(products), 2 * place.kept, place.dim), dtype=dtype)
    lift = _lift(place.length, dtype)
    y: Tensor | None = None
    for part in products:
        turned = room if len(room) == part.shape[0] else room[: part.shape[0]]
        spread(modes, turned, by, part, place, lift, gradients)
        gradients = None
        if y is None:
            shape = (place.batch, place.tokens, place.dim)
            y = modes.new_empty(shape, dtype=dtype) if base is None else _copy(base)
        back = part.matrix.transpose(1, 2)
        part.of(y).baddbmm_(back, turned, beta=int(base is not None), alpha=1 / lift)
    assert y is not None
    return y


def only_gradients(
    modes: Tensor, by: Filter, place: Place, dtype: torch.dtype, gradients: Gradients
) -> None:
    """As :func:`synthesised`, where no tokens are asked for."""
    part = parts(place, SYNTHESIS, dtype, modes.device)[0]
    spread(modes, modes, by, part._replace(rows=0), place, 1.0, gradients)


def spread(
    modes: Tensor,
    turned: Tensor,
    by: Filter,
    part: Part,
    place: Place,
    lift: float,
    gradients: Gradients | None = None,
) -> None:
    """Filter ``modes`` [B, 2 K, D] and turn them back for each chunk, [rows * chunks, 2 K, D]."""
    learned = by.weight.shape[0]
    across, down, *tile = _grid(learned if gradients else place.kept, place.dim)
    spread_kernel[(across, down)](
        *(modes, part.turns, turned, by.weight, by.bias, *(gradients or _NO_GRADIENTS)),
        *(1 / place.length, lift, part.row, part.rows, place.batch, place.length, part.chunks),
        *(learned, place.kept, place.dim, by.conjugate, by.unitary, *tile),
    )


def _most(products: Sequence[Part]) -> int:
    """Chunks of the largest."""
    return max(part.shape[0] for part in products)


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _lift(length: int, dtype: torch.dtype) -> float:
    """Modes shrink like 1 / sqrt(N): this lifts them off float16's smallest numbers."""
    return 2.0 ** round(math.log2(length) / 4) if dtype == torch.float16 else 1.0

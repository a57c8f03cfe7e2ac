"""The modes of a slice, and a slice of given modes, in Triton: a batched product and a kernel each.

A slice is cut into chunks of tokens, and the chunks into batches, one product per batch.

Shapes: B batch, n own tokens, N all tokens, D channels, K modes in use, C tokens of a chunk; modes
are stored as real parts above imaginary parts, [2 K, D].
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
from flashmix.parallel.comm.graphs import cached
from flashmix.parallel.spectral.modes import fourier_matrix

ANALYSIS = (4_096, 16)
"""From tokens to modes: tokens of a chunk, and most chunks in a batch, whose float32 batches are in
memory together."""
SYNTHESIS = (8_192, 8)
"""From modes to tokens, likewise; every chunk of a batch has a copy of the modes in memory."""

_NO_GRADIENTS = (None, None, None, None)
_TILE = 512
"""Elements of a program that computes modes."""
_MOST_COLUMNS = 256


class SlicePosition(NamedTuple):
    """A slice [B, n, D]: its first token ``start``, N = ``length``, and the modes ``kept``."""

    batch: int
    start: int
    tokens: int
    dim: int
    length: int
    kept: int


class ChunkBatch(NamedTuple):
    """The chunks of one batched product: ``chunks`` of each of ``rows`` sequences.

    Attributes:
        row: index of the first sequence.
        twiddles: [chunks, 2, K], see ``kernels_ranks``.
        matrix: exp(-2 pi i m j / N), a view [rows * chunks, 2 K, C].
        shape, stride, offset: the chunks [rows * chunks, C, D] as a view of tokens [B, n, D].
        accumulate: whether an earlier batch had chunks of the same sequences.
    """

    row: int
    rows: int
    chunks: int
    twiddles: Tensor
    matrix: Tensor
    shape: tuple[int, int, int]
    stride: tuple[int, int, int]
    offset: int
    accumulate: bool

    def of(self, x: Tensor) -> Tensor:
        """The chunks as a view of contiguous tokens [B, n, D]."""
        return x.as_strided(self.shape, self.stride, x.storage_offset() + self.offset)


def split_tokens(
    batch: int, count: int, size: int, most: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """(row, rows, first token, chunks, tokens of a chunk) of batches, with one stride in each."""
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
def chunk_batches(
    position: SlicePosition, split: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[ChunkBatch, ...]:
    """The batches of a slice; ``split`` is :data:`ANALYSIS` or :data:`SYNTHESIS`."""
    longest = max(ANALYSIS[0], SYNTHESIS[0])
    table = fourier_matrix(position.length, position.kept, longest, dtype, device)
    found: list[ChunkBatch] = []
    for row, rows, first, chunks, tokens in split_tokens(position.batch, position.tokens, *split):
        begin = position.start + first + tokens * torch.arange(chunks)
        turn = phases(begin[:, None] * torch.arange(position.kept), position.length)
        twiddles = torch.stack((turn.real, turn.imag), 1).float().to(device)
        step = tokens if chunks > 1 or rows == 1 else position.tokens
        found.append(
            ChunkBatch(
                row,
                rows,
                chunks,
                twiddles,
                table[:, :tokens].expand(rows * chunks, -1, -1),
                (rows * chunks, tokens, position.dim),
                (step * position.dim, position.dim, 1),
                (row * position.tokens + first) * position.dim,
                first > 0,
            )
        )
    return tuple(found)


@functools.cache
def _grid(modes: int, dim: int) -> tuple[int, int, int, int]:
    """Programs along channels and along modes; modes and channels of a program."""
    columns = min(_MOST_COLUMNS, next_power_of_2(dim))
    rows = _TILE // columns
    return cdiv(dim, columns), cdiv(modes, rows), rows, columns


def analyse(x: Tensor, position: SlicePosition) -> Tensor:
    """The contribution of a slice's contiguous tokens to the modes, float32 [B, 2 K, D]."""
    batches = chunk_batches(position, ANALYSIS, x.dtype, x.device)
    shape = 2 * position.kept, position.dim
    modes = x.new_empty((position.batch, *shape), dtype=torch.float32)
    room = x.new_empty((_most(batches), *shape), dtype=torch.float32)
    for batch in batches:
        sums = room if len(room) == batch.shape[0] else room[: batch.shape[0]]
        # With ``out=``, autocast does not change the product's dtype.
        if x.dtype == torch.float32:
            torch.bmm(batch.matrix, batch.of(x), out=sums)
        else:
            torch.bmm(batch.matrix, batch.of(x), torch.float32, out=sums)
        sum_chunks(sums, modes, batch, position)
    return modes


def sum_chunks(sums: Tensor, modes: Tensor, batch: ChunkBatch, position: SlicePosition) -> None:
    """Multiply ``sums`` [rows * chunks, 2 K, D] by twiddle factors; add them to ``modes``."""
    own = modes if batch.rows == position.batch else modes[batch.row :]
    across, down, *tile = _grid(position.kept, position.dim)
    collect_kernel[(across, down, batch.rows)](
        sums,
        batch.twiddles,
        own,
        batch.chunks,
        position.kept,
        position.dim,
        batch.accumulate,
        *tile,
    )


class Gradients(NamedTuple):
    """Inputs and outputs of the gradients of W and b.

    Attributes:
        spectrum: of the input, summed across the ranks, [B, 2 K, D].
        upstream: of the output's gradient, summed across the ranks for full gradients, else of
            this slice alone.
        weight: the gradient of W to be written, [M, D, 2].
        bias: that of b, [D], or None.
    """

    spectrum: Tensor
    upstream: Tensor
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Filter:
    """What modes are multiplied by before the inverse transform.

    Attributes:
        weight: W, contiguous [M, D, 2].
        bias: b, contiguous [D], which is added to mode 0; or None.
        unitary: multiply by W - 1.
        conjugate: multiply by W's conjugate.
    """

    weight: Tensor
    bias: Tensor | None
    unitary: bool
    conjugate: bool = False


def synthesise(
    modes: Tensor,
    base: Tensor | None,
    by: Filter,
    position: SlicePosition,
    dtype: torch.dtype,
    gradients: Gradients | None = None,
) -> Tensor:
    """The slice's tokens [B, n, D] of filtered modes.

    Args:
        modes: summed across the ranks, float32 [B, 2 K, D].
        base: tokens that are added to the result, [B, n, D], or None.
        by: the filter.
        position: of the slice.
        dtype: of the result.
        gradients: of W and b, computed in the same launch; or None.
    """
    batches = chunk_batches(position, SYNTHESIS, dtype, modes.device)
    room = modes.new_empty((_most(batches), 2 * position.kept, position.dim), dtype=dtype)
    scale = _scale_for(position.length, dtype)
    y: Tensor | None = None
    for batch in batches:
        twiddled = room if len(room) == batch.shape[0] else room[: batch.shape[0]]
        filter_and_twiddle(modes, twiddled, by, batch, position, scale, gradients)
        gradients = None
        if y is None:
            shape = (position.batch, position.tokens, position.dim)
            y = modes.new_empty(shape, dtype=dtype) if base is None else _copy(base)
        back = batch.matrix.transpose(1, 2)
        batch.of(y).baddbmm_(back, twiddled, beta=int(base is not None), alpha=1 / scale)
    assert y is not None
    return y


def only_gradients(
    modes: Tensor, by: Filter, position: SlicePosition, dtype: torch.dtype, gradients: Gradients
) -> None:
    """Compute ``gradients`` alone; see :func:`synthesise`."""
    batch = chunk_batches(position, SYNTHESIS, dtype, modes.device)[0]
    filter_and_twiddle(modes, modes, by, batch._replace(rows=0), position, 1.0, gradients)


def filter_and_twiddle(
    modes: Tensor,
    twiddled: Tensor,
    by: Filter,
    batch: ChunkBatch,
    position: SlicePosition,
    scale: float,
    gradients: Gradients | None = None,
) -> None:
    """Filter ``modes`` [B, 2 K, D], and twiddle them for each chunk, [rows * chunks, 2 K, D]."""
    learned = by.weight.shape[0]
    across, down, *tile = _grid(learned if gradients else position.kept, position.dim)
    spread_kernel[(across, down)](
        *(modes, batch.twiddles, twiddled, by.weight, by.bias, *(gradients or _NO_GRADIENTS)),
        *(
            1 / position.length,
            scale,
            batch.row,
            batch.rows,
            position.batch,
            position.length,
            batch.chunks,
        ),
        *(learned, position.kept, position.dim, by.conjugate, by.unitary, *tile),
    )


def _most(batches: Sequence[ChunkBatch]) -> int:
    """Chunks of the largest batch."""
    return max(batch.shape[0] for batch in batches)


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _scale_for(length: int, dtype: torch.dtype) -> float:
    """Modes shrink like 1 / sqrt(N): this factor keeps them above float16's smallest numbers."""
    return 2.0 ** round(math.log2(length) / 4) if dtype == torch.float16 else 1.0

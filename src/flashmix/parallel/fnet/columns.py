"""FNet mixing across ranks in Triton: a few launches per chunk, and no copies beside them.

The transform over the width is one dense product that writes its columns straight into the send
buffer: D multiplications an element, less work than gathering columns afterwards. Columns are sent
as messages, or, where GPUs can access each other's memory, stored there by the kernels.

Shapes: B batch, n own tokens, N all tokens, D width, c column pairs of a part; ``kernels_ranks``
defines the pairs and the rows that are exchanged.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flashmix.ops._triton.columns import launch
from flashmix.ops._triton.columns.plan import matrices as column_matrices
from flashmix.ops._triton.launch import cdiv, padded, precision
from flashmix.ops._triton.matrices import dft, place
from flashmix.ops._triton.tuning import LaunchConfig, launch_config
from flashmix.ops.fnet.triton import passes
from flashmix.ops.fnet.triton.kernels_ranks import receive_kernel, return_kernel, send_kernel
from flashmix.parallel.comm.chunks import ColumnChunk, split_columns, split_in_multiples
from flashmix.parallel.comm.chunks import chunk_sizes as pairs_of
from flashmix.parallel.comm.graphs import cached
from flashmix.parallel.comm.ranks import offsets_of
from flashmix.parallel.comm.shared_memory import STATS, SharedMemory
from flashmix.parallel.fnet.plan import UNIT

_TILE = 4096
"""Elements of a program that only copies."""


@dataclass(frozen=True, kw_only=True)
class SendConfig(LaunchConfig):
    """Launch parameters of the product over the width: rows, columns and terms per program step."""

    rows: int = 128
    columns: int = 128
    step: int = 64
    warps: int = 8
    stages: int = 3

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """Float32 takes twice the memory, and three times the products."""
        small = {"rows": 64, "columns": 64, "step": 32, "warps": 4, "stages": 2}
        return cls(**small) if dtype == torch.float32 else cls()


def pairs(dim: int) -> int:
    """Number of pairs of columns j and -j; columns 0 and D / 2 form one pair."""
    return (dim + 1) // 2


def _longer(part: slice, dim: int) -> int:
    """Elements that rows of the part with column D / 2 have more, on the way back."""
    return UNIT if part.start == 0 < part.stop and dim % 2 == 0 else 0


@cached(maxsize=64)
def _hartley(
    parts: tuple[tuple[int, int], ...], dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, float]:
    """(matrix [D, 2 c of all parts], gain): Re + Im of the DFT over the width, times the gain.

    ``parts`` are ranges of pairs; each gives its columns j, then the columns -j in the same order.
    """
    w = dft(dim)
    exact = torch.complex(w.real + w.imag, torch.zeros_like(w.real))
    m = place(exact, dtype, device, terms=dim)
    order = []
    for first, end in parts:
        order += [*range(first, end), *(dim - j if j else dim // 2 for j in range(first, end))]
    return m.re[:, torch.tensor(order, device=device)].contiguous(), m.gain


def _table(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """int64 [rows, ...]."""
    return torch.tensor(rows, dtype=torch.int64).to(device)


class WriteOffsets:
    """Where a rank's kernels write a chunk: on the way there, and on the way back.

    Attributes:
        places: int64 [2, columns], see ``send_kernel``.
        ranks: int64 [2, P], see ``return_kernel``.

    Args:
        chunk: the chunk.
        there: for each rank, the offset of the own rows in its part, in elements.
        back: for each rank, the offset that row 0 of all tokens would have in what it gets back.
    """

    def __init__(self, chunk: ExchangeChunk, there: Sequence[int], back: Sequence[int]) -> None:
        device = chunk.matrix.device
        at: list[int] = []
        step: list[int] = []
        for first, width, count in zip(there, chunk.widths, chunk.counts, strict=True):
            at += range(first, first + 2 * count)
            step += [width] * (2 * count)
        self.places = _table((at, step), device)
        self.ranks = _table((chunk.tokens, back), device)


class ExchangeChunk:
    """A chunk of the columns as it is exchanged.

    Attributes:
        parts, counts: the pairs that each rank computes, and their number.
        widths: elements in a row of each rank's part.
        tokens: the first token of each rank.
        matrix, gain: the DFT over the width, its columns in the order in which they are sent.
        vector: all parts and their rows begin at multiples of so many elements.
        received: the offsets of the parts that come back, see ``receive_kernel``.
        transpose: whether ``receive_kernel`` may store whole rows: the chunk holds all pairs, some
            of every rank, in whole vectors.
        count, width, first: number of own pairs, elements in an own row, and whether pair 0 is own.
    """

    def __init__(self, parts: ColumnChunk, plan: Columns) -> None:
        self.parts, self.counts = parts, pairs_of(parts)
        dim, rank, device = plan.dim, plan.rank, plan.device
        self.widths = [
            2 * count + _longer(part, dim) for part, count in zip(parts, self.counts, strict=True)
        ]
        self.tokens = plan.tokens
        ends = tuple((part.start, part.stop) for part in parts)
        self.matrix, self.gain = _hartley(ends, dim, plan.dtype, device)
        self.vector = UNIT if all(count % UNIT == 0 for count in self.counts) else 1
        self.received = self._received(plan)
        whole = sum(self.counts) == pairs(dim) and min(self.counts) > 0
        self.transpose = whole and self.vector == UNIT and dim % UNIT == 0
        self.count, self.width = self.counts[rank], self.widths[rank]
        self.first = parts[rank].start == 0

    def _received(self, plan: Columns) -> Tensor:
        """The offsets of the parts that come back, as ``receive_kernel`` reads them."""
        rows = plan.rows[plan.rank]
        at = [rows * before for before in offsets_of(self.widths)]
        # Column -j of the pair after a part is the next part's first; after all comes D / 2.
        behind = [begin + count for begin, count in zip(at, self.counts, strict=True)]
        behind = [*behind[1:], 2 * self.counts[0]]
        steps = [*self.widths[1:], self.widths[0]]
        longer = [_longer(part, plan.dim) for part in self.parts]
        firsts = [part.start for part in self.parts]
        table = zip(at, firsts, self.counts, longer, behind, steps, strict=True)
        return _table(list(table), plan.device)


class Columns:
    """The exchange of the columns of tensors of one shape: send, compute, receive.

    Args:
        batch, dim: B and D.
        dtype, device: of the tensors.
        counts: tokens of each rank; their sum N has a factorization that the kernels support.
        rank: this rank.
        norm: "backward" or "ortho".
        chunks: the pairs of columns of each chunk.
    """

    def __init__(
        self,
        batch: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        counts: Sequence[int],
        rank: int,
        norm: str,
        chunks: Sequence[ColumnChunk],
    ) -> None:
        self.batch, self.dim, self.dtype, self.device = batch, dim, dtype, device
        self.rank, self.rows = rank, [batch * count for count in counts]
        self.tokens = offsets_of(counts)
        cut, config, columns = passes.tuned(sum(counts), dim, dtype)
        if cut is None or config is None or columns is None:
            raise AssertionError("lengths that the kernels cannot factor use PyTorch's FFT")
        self.cut, self.m = cut, column_matrices(cut, dtype, device)
        self.config, self.columns = config, columns
        self.sending = launch_config(SendConfig, {}, dtype)
        self.chunks = [ExchangeChunk(chunk, self) for chunk in chunks]
        self.scale = 1 / (2 * self.chunks[0].gain * self.m.forward_gain)
        if norm == "ortho":
            self.scale /= math.sqrt(cut.seq_len * dim)
        self._memory_offsets: dict[tuple[int, ...], list[WriteOffsets]] = {}

    @property
    def widths(self) -> list[list[int]]:
        """For each chunk, the elements of a token that each rank computes, of all sequences."""
        return [[self.batch * width for width in chunk.widths] for chunk in self.chunks]

    @functools.cached_property
    def _message_offsets(self) -> list[WriteOffsets]:
        """For each chunk, the offsets in the send buffer, and, in place, in the receive buffer."""
        own, nowhere = self.rows[self.rank], [0] * len(self.rows)
        return [
            WriteOffsets(chunk, [own * before for before in offsets_of(chunk.widths)], nowhere)
            for chunk in self.chunks
        ]

    @functools.cached_property
    def elements(self) -> int:
        """Most elements that any rank holds of a chunk, on the way there or back."""
        return max(
            max(sum(self.rows) * max(chunk.widths), max(self.rows) * sum(chunk.widths))
            for chunk in self.chunks
        )

    @functools.cached_property
    def written(self) -> int:
        """Elements that this rank writes to other ranks' buffers."""
        own = self.rows[self.rank]
        return sum(
            own * 2 * (sum(chunk.counts) - chunk.count) + (sum(self.rows) - own) * chunk.width
            for chunk in self.chunks
        )

    def send(self, k: int, x: Tensor) -> Tensor:
        """The send buffer of chunk ``k`` of ``x`` [B, n, D]: the ranks' parts one after another."""
        chunk = self.chunks[k]
        flat = x.new_empty(self.rows[self.rank] * sum(chunk.widths))
        self._send(chunk, x, flat, self._message_offsets[k])
        return flat

    def work(self, k: int, flat: Tensor) -> Tensor:
        """The results of the own columns of chunk ``k``, [N, B, width], in place."""
        chunk = self.chunks[k]
        self._return(chunk, self._transform(chunk, flat), flat, self._message_offsets[k])
        return flat

    def receive(self, k: int, flat: Tensor, y: Tensor) -> None:
        """Copy the results of chunk ``k`` to their places in ``y`` [B, n, D]."""
        chunk, rows = self.chunks[k], self.rows[self.rank]
        most = max(chunk.counts) + 1
        width = min(128, padded(most))
        high, tiles = _TILE // width, cdiv(most, width)
        receive_kernel[(cdiv(rows, high), tiles * len(chunk.parts))](
            flat,
            y,
            chunk.received,
            self.batch,
            rows,
            self.dim,
            tiles,
            ROWS=high,
            CP=width,
            VECTOR=chunk.vector,
            TURN=chunk.transpose and width * self.dtype.itemsize >= 128,
            num_warps=8,
        )

    def mix_in_shared_memory(self, x: Tensor, memory: SharedMemory) -> Tensor:
        """Mix ``x`` in shared memory: each kernel stores its results where the next reads them."""
        buffer = memory.buffer(self.elements, self.dtype)
        y: Tensor | None = None
        for k, (chunk, offsets) in enumerate(
            zip(self.chunks, self._offsets_in(memory), strict=True)
        ):
            memory.barrier()  # all ranks have finished with the buffers' contents
            self._send(chunk, x, buffer, offsets)
            memory.barrier()
            dft_rows = self._transform(chunk, buffer)
            memory.barrier()  # all ranks have read
            self._return(chunk, dft_rows, buffer, offsets)
            del dft_rows  # frees memory for the result
            memory.barrier()
            if y is None:
                y = torch.empty(x.shape, dtype=self.dtype, device=self.device)
            self.receive(k, buffer, y)
        STATS.written += self.written * self.dtype.itemsize
        assert y is not None
        return y

    def _offsets_in(self, memory: SharedMemory) -> list[WriteOffsets]:
        distances = memory.distances(self.dtype)
        offsets = self._memory_offsets.get(distances)
        if offsets is None:
            offsets = self._memory_offsets[distances] = [
                self._memory_offsets_of(p, distances) for p in self.chunks
            ]
        return offsets

    def _memory_offsets_of(self, chunk: ExchangeChunk, distances: Sequence[int]) -> WriteOffsets:
        before, behind = sum(self.rows[: self.rank]), offsets_of(chunk.widths)[self.rank]
        there = [d + before * width for d, width in zip(distances, chunk.widths, strict=True)]
        back = [
            distance + rows * behind - self.batch * first * chunk.width
            for distance, rows, first in zip(distances, self.rows, self.tokens, strict=True)
        ]
        return WriteOffsets(chunk, there, back)

    def _send(self, chunk: ExchangeChunk, x: Tensor, to: Tensor, offsets: WriteOffsets) -> None:
        """Transform the own tokens over the width, and store the columns at ``offsets``."""
        config, rows, columns = self.sending, self.rows[self.rank], chunk.matrix.shape[1]
        tiles = cdiv(columns, config.columns)
        send_kernel[(cdiv(rows, config.rows) * tiles,)](
            x,
            chunk.matrix,
            to,
            offsets.places,
            *x.stride(),
            self.batch,
            rows,
            self.dim,
            columns,
            tiles,
            ROWS=config.rows,
            CP=config.columns,
            STEP=config.step,
            VECTOR=chunk.vector,
            PRECISION=precision(self.dtype),
            num_warps=config.warps,
            num_stages=config.stages,
        )

    def _transform(self, chunk: ExchangeChunk, flat: Tensor) -> Tensor:
        """The DFT rows of the own columns, of twice their even parts; empty without columns."""
        if not chunk.count:
            return flat[:0]
        n, width = self.cut.seq_len, chunk.width
        # In whole vectors: the elements after column D / 2 are never read.
        x = flat.as_strided((self.batch, n, width - chunk.count), (width, self.batch * width, 1))
        fold = launch.Fold(chunk.count, own=chunk.first)
        return launch.to_lines(x, self.cut, self.m, self.columns, n, fold)

    def _return(
        self, chunk: ExchangeChunk, dft_rows: Tensor, to: Tensor, offsets: WriteOffsets
    ) -> None:
        """Transform the own columns over the tokens, and store the results at ``offsets``."""
        if not chunk.count:
            return
        cut = self.cut
        tile, tiles = launch.tile(self.config.mirror_c, dft_rows.shape[-1])
        return_kernel[(tiles * cut.lines * self.batch,)](
            dft_rows,
            to,
            offsets.ranks,
            self.m.digit_b.re,
            self.m.digit_b.im,
            dft_rows.stride(0),
            self.scale,
            self.batch,
            cut.seq_len,
            len(self.rows),
            chunk.count,
            chunk.width - 2 * chunk.count,
            dft_rows.shape[-1],
            tiles,
            N1=cut.n1,
            NA=cut.na,
            NB=cut.nb,
            NBP=padded(cut.nb),
            C=tile,
            VECTOR=chunk.vector,
            PRECISION=precision(self.dtype),
            num_warps=self.config.mirror_warps,
        )


@cached(maxsize=32)
def columns_of(
    batch: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
    counts: tuple[int, ...],
    rank: int,
    norm: str,
    most: int | None,
) -> Columns:
    """The exchange of tensors of one shape, in at most ``most`` chunks."""
    shares = split_in_multiples(pairs(dim), len(counts), UNIT)
    column = 2 * batch * sum(counts) * dtype.itemsize
    chunks = split_columns(shares, column, device.type, unit=UNIT, most=most)
    return Columns(batch, dim, dtype, device, counts, rank, norm, chunks)

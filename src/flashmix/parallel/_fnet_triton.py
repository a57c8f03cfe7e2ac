"""FNet mixing over ranks by Triton's kernels: a few launches a piece, and no other copies.

The width's transform is one dense product, whose columns go straight to where they travel: D
multiplications an element, less work than any gather afterwards. What travels goes as messages, or
where GPUs reach each other's memory, is stored there by the kernels themselves.

Shapes: B batch, n own tokens, N all tokens, D width, c pairs of columns of a part; pairs and the
rows that travel are those of ``kernels_ranks``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashmix.ops._triton.columns import launch
from flashmix.ops._triton.columns.plan import matrices as column_matrices
from flashmix.ops._triton.launch import cdiv, padded, precision
from flashmix.ops._triton.matrices import dft, place
from flashmix.ops.fnet.triton import passes
from flashmix.ops.fnet.triton.kernels_ranks import receive_kernel, return_kernel, send_kernel
from flashmix.parallel._fnet import UNIT
from flashmix.parallel._graphs import cached
from flashmix.parallel._memory import USE, SharedMemory
from flashmix.parallel._pieces import Piece, cut, in_units
from flashmix.parallel._pieces import sizes as pairs_of
from flashmix.parallel._ranks import starts

_TILE = 4096
"""Elements of a program that only moves them."""


@dataclass(frozen=True, kw_only=True)
class SendConfig:
    """Tile of a program of the width's product: rows, columns, terms of a step."""

    rows: int = 128
    columns: int = 128
    step: int = 64
    warps: int = 8
    stages: int = 3


def send_config(dtype: torch.dtype) -> SendConfig:
    """What fits: float32 products need twice the room and take three times as many."""
    if dtype == torch.float32:
        return SendConfig(rows=64, columns=64, step=32, warps=4, stages=2)
    return SendConfig()


def pairs(dim: int) -> int:
    """Of columns j and -j, of which 0 and D / 2 make one."""
    return (dim + 1) // 2


def _longer(part: slice, dim: int) -> int:
    """How much longer rows are where D / 2 comes back with them."""
    return UNIT if part.start == 0 < part.stop and dim % 2 == 0 else 0


@cached(maxsize=64)
def _hartley(
    parts: tuple[tuple[int, int], ...], dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, float]:
    """Re + Im of the transform over the width as a matrix [D, 2 c of all parts], times a gain.

    Of each part, its pairs from the first to before the end: the columns j, then their twins.
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


class _Ways:
    """Where a rank's kernels write what is for the ranks, as they read it.

    Args:
        piece: what travels.
        there: where the own rows of each rank's part begin, in elements from where is written.
        back: where row 0 of all tokens would begin in what comes back to each rank.
    """

    def __init__(self, piece: _Travel, there: Sequence[int], back: Sequence[int]) -> None:
        device = piece.matrix.device
        at: list[int] = []
        step: list[int] = []
        for first, width, count in zip(there, piece.widths, piece.counts, strict=True):
            at += range(first, first + 2 * count)
            step += [width] * (2 * count)
        self.places = _table((at, step), device)
        self.ranks = _table((piece.tokens, back), device)


class _Travel:
    """One piece of the columns.

    Attributes:
        parts, counts: each rank's pairs, and how many.
        widths: elements of a row of each rank's part.
        tokens: the first of each rank.
        matrix, gain: of the width's transform, to the columns in the order of travel.
        vector: elements from whose multiples all parts, and their rows, begin.
        received: where each part stands when it came back, see ``receive_kernel``.
        turn: whether all pairs are here, some with each rank, in whole vectors.
        count, width, first: the own pairs, elements of a row, and whether pair 0 is among them.
    """

    def __init__(self, parts: Piece, plan: Columns) -> None:
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
        self.turn = whole and self.vector == UNIT and dim % UNIT == 0
        self.count, self.width = self.counts[rank], self.widths[rank]
        self.first = parts[rank].start == 0

    def _received(self, plan: Columns) -> Tensor:
        """Where each part stands when it came back, as ``receive_kernel`` reads it."""
        rows = plan.rows[plan.rank]
        at = [rows * before for before in starts(self.widths)]
        # The twin of the pair behind a part is the next one's first; behind all stands D / 2.
        behind = [begin + count for begin, count in zip(at, self.counts, strict=True)]
        behind = [*behind[1:], 2 * self.counts[0]]
        steps = [*self.widths[1:], self.widths[0]]
        longer = [_longer(part, plan.dim) for part in self.parts]
        firsts = [part.start for part in self.parts]
        table = zip(at, firsts, self.counts, longer, behind, steps, strict=True)
        return _table(list(table), plan.device)


class Columns:
    """How the columns of tensors of one shape travel: sent, mixed where they arrive, received.

    Args:
        batch, dim: B and D.
        dtype, device: of the tensors.
        counts: tokens of each rank, N in all; N has digits.
        rank: this one.
        norm: "backward" or "ortho".
        pieces: of the pairs of columns, the parts of the ranks one behind the other's.
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
        pieces: Sequence[Piece],
    ) -> None:
        self.batch, self.dim, self.dtype, self.device = batch, dim, dtype, device
        self.rank, self.rows = rank, [batch * count for count in counts]
        self.tokens = starts(counts)
        cut, how, columns = passes.tuned(sum(counts), dim, dtype)
        if cut is None:
            raise AssertionError("lengths without digits go through PyTorch's FFT")
        self.cut, self.m = cut, column_matrices(cut, dtype, device)
        self.how = how or passes.config(padded(cut.nb), dim, dtype)
        self.columns = columns or launch.config(cut, dtype)
        self.sending = send_config(dtype)
        self.pieces = [_Travel(piece, self) for piece in pieces]
        self.scale = 1 / (2 * self.pieces[0].gain * self.m.forward_gain)
        if norm == "ortho":
            self.scale /= math.sqrt(cut.seq_len * dim)
        self._stores: dict[tuple[int, ...], list[_Ways]] = {}

    @property
    def widths(self) -> list[list[int]]:
        """Of each piece, the elements that each rank works on, of a token and all sequences."""
        return [[self.batch * width for width in piece.widths] for piece in self.pieces]

    @functools.cached_property
    def _messages(self) -> list[_Ways]:
        """Of each piece, where the rows stand in what is sent and, in place, in what came."""
        own, nowhere = self.rows[self.rank], [0] * len(self.rows)
        return [
            _Ways(piece, [own * before for before in starts(piece.widths)], nowhere)
            for piece in self.pieces
        ]

    @functools.cached_property
    def elements(self) -> int:
        """Most that a rank holds of a piece, when it arrives or comes back."""
        return max(
            max(sum(self.rows) * max(piece.widths), max(self.rows) * sum(piece.widths))
            for piece in self.pieces
        )

    @functools.cached_property
    def written(self) -> int:
        """Elements that this rank writes for others."""
        own = self.rows[self.rank]
        return sum(
            own * 2 * (sum(piece.counts) - piece.count) + (sum(self.rows) - own) * piece.width
            for piece in self.pieces
        )

    def send(self, k: int, x: Tensor) -> Tensor:
        """What travels of piece ``k`` of ``x`` [B, n, D], one rank's part behind the other's."""
        piece = self.pieces[k]
        flat = x.new_empty(self.rows[self.rank] * sum(piece.widths))
        self._send(piece, x, flat, self._messages[k])
        return flat

    def work(self, k: int, flat: Tensor) -> Tensor:
        """Y of the own columns of piece ``k``, written over what came, [N, B, width]."""
        piece = self.pieces[k]
        self._give_back(piece, self._planes(piece, flat), flat, self._messages[k])
        return flat

    def receive(self, k: int, flat: Tensor, y: Tensor) -> None:
        """Put piece ``k``, which came back, into its place in ``y`` [B, n, D]."""
        piece, rows = self.pieces[k], self.rows[self.rank]
        most = max(piece.counts) + 1
        width = min(128, padded(most))
        high, tiles = _TILE // width, cdiv(most, width)
        receive_kernel[(cdiv(rows, high), tiles * len(piece.parts))](
            flat,
            y,
            piece.received,
            self.batch,
            rows,
            self.dim,
            tiles,
            ROWS=high,
            CP=width,
            VECTOR=piece.vector,
            TURN=piece.turn and width * self.dtype.itemsize >= 128,
            num_warps=8,
        )

    def through_memory(self, x: Tensor, memory: SharedMemory) -> Tensor:
        """All of it, each kernel storing what it makes where the next one reads it."""
        buffer = memory.buffer(self.elements, self.dtype)
        y: Tensor | None = None
        for k, (piece, ways) in enumerate(zip(self.pieces, self._storing(memory), strict=True)):
            memory.meet()  # all are done with what stood there
            self._send(piece, x, buffer, ways)
            memory.meet()
            planes = self._planes(piece, buffer)
            memory.meet()  # all have read
            self._give_back(piece, planes, buffer, ways)
            del planes  # the result may stand there
            memory.meet()
            if y is None:
                y = torch.empty(x.shape, dtype=self.dtype, device=self.device)
            self.receive(k, buffer, y)
        USE.written += self.written * self.dtype.itemsize
        assert y is not None
        return y

    def _storing(self, memory: SharedMemory) -> list[_Ways]:
        distances = memory.distances(self.dtype)
        ways = self._stores.get(distances)
        if ways is None:
            ways = self._stores[distances] = [self._stored(p, distances) for p in self.pieces]
        return ways

    def _stored(self, piece: _Travel, distances: Sequence[int]) -> _Ways:
        before, behind = sum(self.rows[: self.rank]), starts(piece.widths)[self.rank]
        there = [d + before * width for d, width in zip(distances, piece.widths, strict=True)]
        back = [
            distance + rows * behind - self.batch * first * piece.width
            for distance, rows, first in zip(distances, self.rows, self.tokens, strict=True)
        ]
        return _Ways(piece, there, back)

    def _send(self, piece: _Travel, x: Tensor, to: Tensor, ways: _Ways) -> None:
        """The own rows of each rank's part."""
        how, rows, columns = self.sending, self.rows[self.rank], piece.matrix.shape[1]
        tiles = cdiv(columns, how.columns)
        send_kernel[(cdiv(rows, how.rows) * tiles,)](
            x,
            piece.matrix,
            to,
            ways.places,
            *x.stride(),
            self.batch,
            rows,
            self.dim,
            columns,
            tiles,
            ROWS=how.rows,
            CP=how.columns,
            STEP=how.step,
            VECTOR=piece.vector,
            PRECISION=precision(self.dtype),
            num_warps=how.warps,
            num_stages=how.stages,
        )

    def _planes(self, piece: _Travel, flat: Tensor) -> Tensor:
        """2 g of the own columns, transformed to lines; none where there are no columns."""
        if not piece.count:
            return flat[:0]
        n, width = self.cut.seq_len, piece.width
        # In whole vectors: what stands beyond D / 2 is never looked at.
        x = flat.as_strided((self.batch, n, width - piece.count), (width, self.batch * width, 1))
        fold = launch.Fold(piece.count, own=piece.first)
        return launch.to_lines(x, self.cut, self.m, self.columns, n, fold)

    def _give_back(self, piece: _Travel, planes: Tensor, to: Tensor, ways: _Ways) -> None:
        """Y of the own columns, to the ranks that hold its tokens."""
        if not piece.count:
            return
        cut = self.cut
        tile, tiles = launch.tile(self.how.mirror_c, planes.shape[-1])
        return_kernel[(tiles * cut.lines * self.batch,)](
            planes,
            to,
            ways.ranks,
            self.m.digit_b.re,
            self.m.digit_b.im,
            planes.stride(0),
            self.scale,
            self.batch,
            cut.seq_len,
            len(self.rows),
            piece.count,
            piece.width - 2 * piece.count,
            planes.shape[-1],
            tiles,
            N1=cut.n1,
            NA=cut.na,
            NB=cut.nb,
            NBP=padded(cut.nb),
            C=tile,
            VECTOR=piece.vector,
            PRECISION=precision(self.dtype),
            num_warps=self.how.mirror_warps,
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
    """The columns of tensors of one shape, in so many pieces at most."""
    shares = in_units(pairs(dim), len(counts), UNIT)
    column = 2 * batch * sum(counts) * dtype.itemsize
    pieces = cut(shares, column, device.type, unit=UNIT, most=most)
    return Columns(batch, dim, dtype, device, counts, rank, norm, pieces)

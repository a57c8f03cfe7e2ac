"""FNet mixing over ranks by Triton's kernels: a few launches a piece, and no other copies.

The width's transform is one dense product for each part that travels, which lays it out as it
travels: D multiplications an element, less work than any gather afterwards.

Shapes: B batch, n own tokens, N all tokens, D width, J = D // 2 + 1 columns, c own of a piece.
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
from flashmix.ops.fnet.triton.kernels_ranks import (
    fold_kernel,
    receive_kernel,
    return_kernel,
)
from flashmix.parallel._pieces import Piece

_TILE = 2048
"""Elements of a program that only moves them."""


_Parts = tuple[tuple[tuple[int, int], ...], ...]
"""The columns j <= D / 2 of each piece, the ranks' parts one behind the other: (first, end)."""


@functools.lru_cache(maxsize=64)
def _hartley(
    pieces: _Parts, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[list[Tensor]], float]:
    """Re + Im of the transform over the width as matrices [D, 2 c], times a gain.

    One for each piece and part of it: its columns j, then their twins -j (mod D).
    """
    w = dft(dim)
    exact = torch.complex(w.real + w.imag, torch.zeros_like(w.real))
    m = place(exact, dtype, device, terms=dim)

    def of(first: int, end: int) -> Tensor:
        j = torch.arange(first, end, device=device)
        return m.re[:, torch.cat((j, -j % dim))].contiguous()

    return [[of(*part) for part in piece] for piece in pieces], m.gain


@dataclass(frozen=True)
class _Route:
    """Where the columns stand while they travel.

    Attributes:
        places: int32 [3, D] as ``kernels_ranks`` reads it.
        begin: how many columns travel before each piece, twins counted; the last is D.
        before: the elements before each piece; the last is their sum.
    """

    places: Tensor
    begin: Sequence[int]
    before: Sequence[int]


@functools.lru_cache(maxsize=64)
def _route(pieces: _Parts, rows: int, dim: int, device: torch.device) -> _Route:
    """Of ``rows`` rows."""
    table = torch.empty(3, dim, dtype=torch.int32)
    order: list[int] = []
    begin, before = [0], [0]
    for piece in pieces:
        at = before[-1]
        for first, end in piece:
            width = end - first
            twins = [j for j in range(first, end) if 0 < 2 * j < dim]
            for j in range(first, end):
                table[1, j] = at + j - first
            for j in twins:
                table[1, dim - j] = at + width + j - first
            here = [*range(first, end), *(dim - j for j in reversed(twins))]
            table[2, here] = 2 * width
            order += here
            at += 2 * rows * width
        begin.append(len(order))
        before.append(at)
    table[0] = torch.tensor(order)
    return _Route(table.to(device), begin, before)


class Columns:
    """The columns of one tensor on their way: sent, mixed where they arrive, and received.

    Args:
        x: own tokens, [B, n, D].
        pieces: of the columns j <= D / 2, the parts of the ranks one behind the other's.
        rank: this one.
        seq_len: N, which has digits.
        norm: "backward" or "ortho".

    Attributes:
        received: the result [B, n, D], whole when the last piece came back.
    """

    received: Tensor

    def __init__(
        self, x: Tensor, pieces: Sequence[Piece], rank: int, seq_len: int, norm: str
    ) -> None:
        self.batch, self.count, self.dim = x.shape
        self.pieces, self.rank, self.norm = pieces, rank, norm
        cut, how, columns = passes.tuned(seq_len, self.dim, x.dtype)
        if cut is None:
            raise AssertionError("lengths without digits go through PyTorch's FFT")
        self.cut = cut
        self.how = how or passes.config(padded(cut.nb), self.dim, x.dtype)
        self.columns = columns or launch.config(cut, x.dtype)
        parts = tuple(tuple((part.start, part.stop) for part in piece) for piece in pieces)
        self.route = _route(parts, self.rows, self.dim, x.device)
        self.matrices, self.gain = _hartley(parts, self.dim, x.dtype, x.device)
        self.dtype, self.device = x.dtype, x.device
        self.tokens = x.transpose(0, 1).reshape(self.rows, self.dim)

    @property
    def rows(self) -> int:
        """Own tokens of all sequences, R."""
        return self.batch * self.count

    def send(self, k: int) -> Tensor:
        """What travels of piece ``k``: one product for each rank's part."""
        start, end = self.route.before[k : k + 2]
        flat = self.tokens.new_empty(end - start)
        sizes = [self.rows * m.shape[1] for m in self.matrices[k]]
        for part, m in zip(flat.split(sizes), self.matrices[k], strict=True):
            torch.mm(self.tokens, m, out=part.view(self.rows, -1))
        return flat

    def work(self, k: int, flat: Tensor) -> Tensor:
        """Y of the own columns of piece ``k``, written over what came, [N, B, 2, c]."""
        own = self.pieces[k][self.rank]
        c = own.stop - own.start
        if not c:
            return flat
        cut, n = self.cut, self.cut.seq_len
        m = column_matrices(cut, self.dtype, self.device)
        planes = launch.to_lines(self._folded(flat, own), cut, m, self.columns, n)
        scale = 1 / (2 * self.gain * m.forward_gain)
        if self.norm == "ortho":
            scale /= math.sqrt(n * self.dim)
        tile, tiles = launch.tile(self.how.mirror_c, c)
        return_kernel[(tiles * cut.lines * self.batch,)](
            planes,
            flat,
            m.digit_b.re,
            m.digit_b.im,
            planes.stride(0),
            scale,
            self.batch,
            n,
            c,
            planes.shape[-1],
            tiles,
            N1=cut.n1,
            NA=cut.na,
            NB=cut.nb,
            NBP=padded(cut.nb),
            C=tile,
            PRECISION=precision(self.dtype),
            num_warps=self.how.mirror_warps,
        )
        return flat

    def _folded(self, flat: Tensor, own: slice) -> Tensor:
        """2 g of the columns ``own``, [B, N, c] and up to whole vectors, so that masks split none.

        What stands beyond c is never looked at.
        """
        n, c = self.cut.seq_len, own.stop - own.start
        g = flat.new_empty(self.batch, n, cdiv(c, 16) * 16)
        rows, width = _moved(c)
        fold_kernel[(cdiv(n * self.batch, rows), cdiv(c, width))](
            flat,
            g,
            self.batch,
            n,
            own.start,
            c,
            g.shape[2],
            self.dim,
            ROWS=rows,
            CP=width,
        )
        return g

    def receive(self, k: int, flat: Tensor) -> None:
        """Put piece ``k``, which came back, into its place."""
        if not k:
            shape = (self.batch, self.count, self.dim)
            self.received = torch.empty(shape, dtype=self.dtype, device=self.device)
        begin, end = self.route.begin[k : k + 2]
        rows, width = _moved(end - begin)
        receive_kernel[(cdiv(self.rows, rows), cdiv(end - begin, width))](
            flat,
            self.received,
            self.route.places,
            begin,
            end - begin,
            self.route.before[k],
            self.batch,
            self.rows,
            self.dim,
            ROWS=rows,
            CP=width,
        )


def _moved(columns: int) -> tuple[int, int]:
    """Rows and columns of a program that only moves elements."""
    width = min(256, padded(columns))
    return _TILE // width, width

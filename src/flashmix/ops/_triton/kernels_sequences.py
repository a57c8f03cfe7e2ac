"""How a kernel finds the tokens of its sequence; see ``sequences`` for how they are given.

Kernels that take S, N and the rows of a workspace do not specialise on them: another batch compiles
nothing, and a size of one stays a tensor.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["N"])
def count_kernel(mask, lengths, stride_s, stride_n, N, CHUNK: tl.constexpr):
    """Real tokens of one sequence."""
    s = tl.program_id(0).to(tl.int64)
    length = 0
    for first in range(0, N, CHUNK):
        n = first + tl.arange(0, CHUNK)
        real = tl.load(mask + s * stride_s + n.to(tl.int64) * stride_n, mask=n < N, other=0) != 0
        length += tl.sum(real.to(tl.int32), 0)
    tl.store(lengths + s, length)


@triton.jit(do_not_specialize=["N"])
def order_kernel(
    mask,
    lengths,
    order,
    offsets,
    stride_s,
    stride_n,
    N,
    CHUNK: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """Positions of the tokens of one sequence, real ones first and each part in order; and where
    its real tokens end among those of all."""
    last = tl.program_id(0)
    s = last.to(tl.int64)
    mask += s * stride_s
    order += s * N
    length = tl.load(lengths + s)
    end = length
    for first in range(0, last, SEQUENCES):
        i = first + tl.arange(0, SEQUENCES)
        end += tl.sum(tl.load(lengths + i, mask=i < last, other=0), 0)
    tl.store(offsets + s + 1, end)
    if last == 0:
        tl.store(offsets, 0)
    before = 0
    for first in range(0, N, CHUNK):
        n = first + tl.arange(0, CHUNK)
        real = tl.load(mask + n.to(tl.int64) * stride_n, mask=n < N, other=0) != 0
        # Of the tokens up to n, those that are real; the others stand behind all real ones.
        count = before + tl.cumsum(real.to(tl.int32), 0)
        tl.store(order + tl.where(real, count - 1, length + n - count), n, mask=n < N)
        before += tl.sum(real.to(tl.int32), 0)


@triton.jit
def find_tile(program, lengths, offsets, S, N, TOKENS: tl.constexpr):
    """A program's sequence, which tile of it, its first token among those of all, and its length.

    A sequence has one tile more than ``TOKENS`` fill; those that hold nothing have no work. Those
    of packed tokens begin at offsets[s] // TOKENS + s, which needs no table.
    """
    if lengths is not None:
        tiles = N // TOKENS + 1
        s = program // tiles
        tile = program % tiles
        start = tl.load(offsets + s)
        length = tl.load(lengths + s)
    elif offsets is not None:
        s = 0
        above = S
        while above - s > 1:
            middle = (s + above) // 2
            begins = tl.load(offsets + middle) // TOKENS + middle <= program
            s = tl.where(begins, middle, s)
            above = tl.where(begins, above, middle)
        start = tl.load(offsets + s)
        length = tl.load(offsets + s + 1) - start
        tile = program - (start // TOKENS + s)
    else:
        tiles = N // TOKENS + 1
        s = program // tiles
        tile = program % tiles
        start = 0
        length = N
    return s, tile, start, length


@triton.jit
def token_rows(order, s, start, i, kept, N):
    """Rows of the tokens ``i`` of sequence ``s``, int64: within a padded row, or packed ones."""
    if order is not None:
        return tl.load(order + s.to(tl.int64) * N + i, mask=kept, other=0).to(tl.int64)
    return (start + i).to(tl.int64)


@triton.jit
def folded_base(offsets, s, start, N):
    """The first of the L // 2 + 1 folded rows of sequence ``s``, int64."""
    if offsets is not None:
        return (start // 2 + s).to(tl.int64)
    return s.to(tl.int64) * (N // 2 + 1)

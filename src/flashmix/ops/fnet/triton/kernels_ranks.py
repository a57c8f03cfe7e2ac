"""FNet mixing across ranks in Triton: what stands before, between and after the exchanges.

h = Re X + Im X of a row's transform over the width is one real number for each of its columns, and
g[n, j] = (h[n, j] + h[-n, -j]) / 2 is all that Re(FFT2) depends on (see ``kernels_columns``). So
the columns j and -j travel side by side, a pair; who has all tokens of both folds them on reading
(``columns.kernels``), transforms g over tokens, and sends Y[k, j] back beside Y[k, -j]. The columns
0 and D / 2 mirror themselves and make one pair, with two columns of g: D / 2 pairs in all.

Communicated data is [rows, width] for each rank and piece, end to end: a row is a token and a
sequence of the batch, its first C numbers belong to the columns j of C pairs, the next C to their
twins -j.
In the part with pair 0, where D is even, rows are longer by ``OWN`` = 16 numbers: D / 2 stands in
its twin's place on the way there, and Y of column D / 2 comes back in the first of those 16.

Shapes: B batch, N tokens of all ranks, D width, R = rows n * B of this rank.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.columns.kernels_lines import line_frequencies, load_digit, load_line
from flashmix.ops._triton.kernels_complex import product
from flashmix.ops.fnet.triton.kernels_pass2 import reverse_columns


@triton.jit
def send_kernel(
    x,
    matrix,
    to,
    places,
    stride_b,
    stride_n,
    stride_d,
    B,
    R,
    D,
    COLUMNS,
    TILES,
    ROWS: tl.constexpr,
    CP: tl.constexpr,
    STEP: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x [B, n, D] times ``matrix`` [D, COLUMNS], each column to where its rank reads it.

    ``places`` is int64 [2, COLUMNS]: where a column's first row goes, in elements from ``to``, and
    how far apart its rows are; ``VECTOR`` columns side by side stay so, at multiples of it.
    """
    row = (tl.program_id(0) // TILES) * ROWS + tl.arange(0, ROWS)[:, None]
    i = (tl.program_id(0) % TILES) * CP + tl.arange(0, CP)[None, :]
    inside = i < COLUMNS
    x += (row % B).to(tl.int64) * stride_b + (row // B).to(tl.int64) * stride_n
    acc = tl.zeros((ROWS, CP), tl.float32)
    for start in range(0, D, STEP):
        d = start + tl.arange(0, STEP)
        a = tl.load(x + d[None, :] * stride_d, mask=(row < R) & (d[None, :] < D), other=0.0)
        m = tl.load(matrix + d[:, None] * COLUMNS + i, mask=(d[:, None] < D) & inside, other=0.0)
        acc = tl.dot(a, m, acc, input_precision=PRECISION)
    at = tl.load(places + i, mask=inside, other=0)
    step = tl.load(places + COLUMNS + i, mask=inside, other=0)
    at = tl.multiple_of(tl.max_contiguous(at, (1, VECTOR)), (1, VECTOR))
    step = tl.multiple_of(tl.max_constancy(step, (1, VECTOR)), (1, VECTOR))
    tl.store(to + (at + row * step), acc.to(to.dtype.element_ty), mask=inside & (row < R))


@triton.jit
def _rank_of(k, B, b, width, ranks, RANKS, VECTOR: tl.constexpr):
    """Where the rows of the tokens k go: ``ranks`` int64 [2, RANKS], see ``return_kernel``."""
    at = tl.multiple_of(tl.load(ranks + RANKS), VECTOR) + 0 * k
    for rank in range(1, RANKS):
        base = tl.multiple_of(tl.load(ranks + RANKS + rank), VECTOR)
        at = tl.where(k >= tl.load(ranks + rank), base, at)
    return at + (k * B + b) * width


@triton.jit
def return_kernel(
    planes,
    to,
    ranks,
    digit_re,
    digit_im,
    part,
    scale,
    B,
    N,
    RANKS,
    PAIRS,
    OWN,
    W,
    TILES,
    N1: tl.constexpr,
    NA: tl.constexpr,
    NB: tl.constexpr,
    NBP: tl.constexpr,
    C: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One line of g to Y of its PAIRS, at the rows k and -k, each to the rank that holds them.

    ``ranks`` is int64 [2, RANKS]: the first token of each rank, and where row 0 of its part would
    stand, in elements from ``to``, a multiple of ``VECTOR``.
    """
    LINES: tl.constexpr = (N1 // 2 + 1) * NA
    which = tl.program_id(0) // TILES
    b, line = which // LINES, which % LINES
    row = tl.arange(0, NBP)[:, None]
    i = (tl.program_id(0) % TILES) * C + tl.arange(0, C)[None, :]
    planes += which.to(tl.int64) * NB * W
    t_re, t_im = load_line(planes, part, row, i, W, W, NB)
    m_re, m_im = load_digit(digit_re, digit_im, NBP)
    s_re, s_im = product(m_re, m_im, t_re, t_im, PRECISION)
    dtype = to.dtype.element_ty
    here = ((s_re - s_im) * scale).to(dtype)
    there = ((s_re + s_im) * scale).to(dtype)
    k = line_frequencies(line, N1, NA, NBP)
    kept = (row < NB) & (i < PAIRS)
    # Behind the pairs stands the column D / 2, which is its own twin.
    twin = (row < NB) & (i < PAIRS + OWN)
    width = 2 * PAIRS + OWN
    at = to + (_rank_of(k, B, b, width, ranks, RANKS, VECTOR) + i)
    tl.store(at, here, mask=kept)
    tl.store(at + PAIRS, tl.where(i < PAIRS, there, here), mask=twin)
    # The planes 0 and H hold -k beside k.
    inner = 2 * k % N1 != 0
    at = to + (_rank_of(N - k, B, b, width, ranks, RANKS, VECTOR) + i)
    tl.store(at, there, mask=kept & inner)
    tl.store(at + PAIRS, tl.where(i < PAIRS, here, there), mask=twin & inner)


@triton.jit
def receive_kernel(
    flat,
    y,
    parts,
    B,
    R,
    D,
    TILES,
    ROWS: tl.constexpr,
    CP: tl.constexpr,
    VECTOR: tl.constexpr,
    TURN: tl.constexpr,
):
    """What came back of a piece into y [B, n, D].

    ``parts`` is int64 [parts, 6]: where it begins in ``flat``, its first pair, its pairs and OWN;
    where the twin of the pair behind its last one stands, and how far apart the rows there are.

    With ``TURN``, which takes all pairs to be in this piece and D in whole vectors, columns of
    twins are stored eight at a time: those of seven pairs of an aligned eight and of the next one.
    """
    parts += (tl.program_id(1) // TILES) * 6
    at = tl.multiple_of(tl.load(parts), VECTOR)
    first = tl.multiple_of(tl.load(parts + 1).to(tl.int32), VECTOR)
    pairs = tl.multiple_of(tl.load(parts + 2).to(tl.int32), VECTOR)
    own = tl.multiple_of(tl.load(parts + 3).to(tl.int32), VECTOR)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    i = (tl.program_id(1) % TILES) * CP + tl.arange(0, CP)[None, :]
    whole = flat
    flat += at + (row * (2 * pairs + own) + i)
    here = tl.load(flat, mask=(row < R) & (i < pairs), other=0.0)
    n, b = row // B, row % B
    y_row = y + (b * (R // B) + n) * D
    tl.store(y_row + (first + i), here, mask=(row < R) & (i < pairs))
    if TURN:
        place = tl.arange(0, CP)[None, :] % 8
        block = tl.arange(0, CP)[None, :] // 8 * 8
        end = (tl.program_id(1) % TILES) * CP + CP
        start = end - 8 - block
        kept = (row < R) & (start < pairs)
        behind = tl.multiple_of(tl.load(parts + 4), VECTOR)
        step = tl.multiple_of(tl.load(parts + 5).to(tl.int32), VECTOR)
        twins = whole + at + (row * (2 * pairs + own) + pairs + start + place)
        next_eight = tl.where(start + 8 == pairs, whole + behind + (row * step + place), twins + 8)
        a = tl.load(twins, mask=kept, other=0.0)
        z = tl.load(next_eight, mask=kept, other=0.0)
        turned = reverse_columns(a, z, ROWS, CP)
        tl.store(y_row + (D - first - end + block + place), turned, mask=kept)
        return
    twin = tl.load(flat + pairs, mask=(row < R) & (i < pairs + own), other=0.0)
    # Addresses descend along pairs, which therefore come first: threads follow the first axis
    # where none ascends.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :]
    i = (tl.program_id(1) % TILES) * CP + tl.arange(0, CP)[:, None]
    n, b = row // B, row % B
    j = tl.where(i < pairs, D - first - i, D // 2)
    kept = (row < R) & (i < tl.where(own > 0, pairs + 1, pairs)) & (first + i > 0)
    tl.store(y + ((b * (R // B) + n) * D + j), tl.trans(twin), mask=kept)

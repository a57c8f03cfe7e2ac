"""FNet mixing over ranks in Triton: what stands between and after the exchanges.

h = Re X + Im X of a row's transform over the width is one real number for each of its columns, and
g[n, j] = (h[n, j] + h[-n, -j]) / 2 is all that Re(FFT2) depends on (see ``kernels_columns``). So
the columns j and -j travel side by side; who has all tokens of both folds them, transforms g over
tokens, and sends Y[k, j] back beside Y[k, -j].

What travels is [rows, 2, c] for each rank and piece, end to end: a row is a token and a sequence
of the batch, c the columns j <= D / 2 of that part, whose twins -j follow them. Column 0 and D / 2
are their own twins, and nothing stands in the twin's place. ``places`` is int32 [3, D]: the columns
in the order of travel; then, by column, where its first row stands, and how far apart its rows are.

Shapes: B batch, N tokens of all ranks, D width, R = rows n * B of this rank.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.columns.kernels_lines import line_frequencies, load_digit, load_line
from flashmix.ops._triton.kernels_complex import product


@triton.jit
def fold_kernel(
    flat,
    g,
    B,
    N,
    FIRST,
    C,
    W,
    D,
    ROWS: tl.constexpr,
    CP: tl.constexpr,
):
    """2 g [B, N, W] of what came in, [N, B, 2, C], whose first column is FIRST."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.program_id(1) * CP + tl.arange(0, CP)[None, :]
    n, b = row // B, row % B
    back = tl.where(n == 0, 0, N - n)
    kept = (row < N * B) & (i < C)
    own = (FIRST + i == 0) | (2 * (FIRST + i) == D)  # these have no twin
    here = tl.load(flat + (row * 2 * C + i), mask=kept, other=0.0).to(tl.float32)
    back = flat + ((back * B + b) * 2 * C + i)
    there = tl.load(back, mask=kept & own, other=0.0).to(tl.float32)
    there += tl.load(back + C, mask=kept & ~own, other=0.0).to(tl.float32)
    tl.store(g + ((b * N + n) * W + i), (here + there).to(g.dtype.element_ty), mask=kept)


@triton.jit
def return_kernel(
    planes,
    flat,
    digit_re,
    digit_im,
    part,
    scale,
    B,
    N,
    OWN,
    W,
    COLUMNS,
    N1: tl.constexpr,
    NA: tl.constexpr,
    NB: tl.constexpr,
    NBP: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One line of g to Y of its OWN columns, [N, B, 2, OWN], at the rows k and -k."""
    LINES: tl.constexpr = (N1 // 2 + 1) * NA
    which = tl.program_id(0) // COLUMNS
    b, line = which // LINES, which % LINES
    row = tl.arange(0, NBP)[:, None]
    j = (tl.program_id(0) % COLUMNS) * C + tl.arange(0, C)[None, :]
    planes += which.to(tl.int64) * NB * W
    t_re, t_im = load_line(planes, part, row, j, W, W, NB)
    m_re, m_im = load_digit(digit_re, digit_im, NBP)
    s_re, s_im = product(m_re, m_im, t_re, t_im, PRECISION)
    dtype = flat.dtype.element_ty
    here = ((s_re - s_im) * scale).to(dtype)
    there = ((s_re + s_im) * scale).to(dtype)
    k = line_frequencies(line, N1, NA, NBP)
    kept = (row < NB) & (j < OWN)
    # The planes 0 and H hold -k beside k.
    inner = kept & (2 * k % N1 != 0)
    to = flat + ((k * B + b) * 2 * OWN + j)
    tl.store(to, here, mask=kept)
    tl.store(to + OWN, there, mask=kept)
    to = flat + (((N - k) * B + b) * 2 * OWN + j)
    tl.store(to, there, mask=inner)
    tl.store(to + OWN, here, mask=inner)


@triton.jit
def receive_kernel(
    flat,
    y,
    places,
    BEGIN,
    COUNT,
    BEFORE,
    B,
    R,
    D,
    ROWS: tl.constexpr,
    CP: tl.constexpr,
):
    """A piece that came back, COUNT columns from place BEGIN on, into y [B, n, D].

    BEFORE elements of the pieces before it are not in ``flat``.
    """
    # Of axes without known runs Triton lets threads follow the first: columns here.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :]
    i = tl.program_id(1) * CP + tl.arange(0, CP)[:, None]
    inside = i < COUNT
    kept = inside & (row < R)
    j = tl.load(places + BEGIN + i, mask=inside, other=0)
    at = tl.load(places + D + j, mask=inside, other=0) - BEFORE
    step = tl.load(places + 2 * D + j, mask=inside, other=0)
    tile = tl.load(flat + (at + row * step), mask=kept, other=0.0)
    n, b = row // B, row % B
    tl.store(y + ((b * (R // B) + n) * D + j), tile, mask=kept)

"""The first and the last pass of FNet mixing column by column.

Y = Re(FFT2(x)) depends on x only through its even part e[n, d] = (x[n, d] + x[-n, -d]) / 2. With
z = the transform of e over the width and g = Re z + Im z, Y is the Hartley transform of g over
tokens: Y[k, j] = sum of g[n, j] cas(2 pi n k / N), and g[-n, j] = g[n, -j], Y[-k, -j] = Y[k, j]. So
the columns j <= D / 2 are enough in between, half of the bytes: ``width_kernel`` makes g, the
column transforms (``_triton.columns``) take it to lines, and ``mirror_kernel`` writes Y.

Shapes: G = D // 2 + 1 columns of g, in rows of W elements; C columns of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.columns.kernels_lines import line_frequencies, load_digit, load_line
from flashmix.ops._triton.kernels_complex import digit_last, product, real_product, turn


@triton.jit
def width_kernel(
    x,
    g,
    cas_re,
    cas_im,
    twiddle_re,
    twiddle_im,
    width_2_re,
    width_2_im,
    stride_b,
    stride_n,
    stride_d,
    N,
    BLOCKS,
    W: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    D1P: tl.constexpr,
    D2P: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """ROWS rows n <= N / 2 of one sequence, and their mirror images -n, to the same rows of g.

    The transform of (x[n] + x[-n]) + i (x[n] - x[-n]) has the real part 2 g[-n, j] = 2 g[n, -j].
    """
    D: tl.constexpr = D1 * D2
    # Columns from D // 2 + 1 on are not needed, but masks would split their vectors.
    G: tl.constexpr = W if W <= D else D // 2 + 1
    first = (tl.program_id(0) % BLOCKS) * ROWS
    b = (tl.program_id(0) // BLOCKS).to(tl.int64)
    x += b * stride_b
    n = first + tl.arange(0, ROWS)[:, None]
    back = tl.where(n == 0, 0, N - n)
    column = tl.arange(0, D1P * D2P)[None, :]
    d1, d2 = column // D2P, column % D2P
    kept = (2 * n <= N) & (d1 < D1) & (d2 < D2)
    at = (d1 * D2 + d2) * stride_d
    here = digit_last(tl.load(x + (n * stride_n + at), mask=kept, other=0.0), ROWS, D1P, D2P)
    there = digit_last(tl.load(x + (back * stride_n + at), mask=kept, other=0.0), ROWS, D1P, D2P)

    # Sum and difference of the rows are left to the product, which rounds nothing: its matrices
    # are p = Re w - Im w and q = Re w + Im w.
    square_1 = tl.arange(0, D1P)[:, None] * D1P + tl.arange(0, D1P)[None, :]
    p = tl.load(cas_re + square_1)
    q = tl.load(cas_im + square_1)
    re = tl.dot(here, p, input_precision=PRECISION)
    re = tl.dot(there, q, re, input_precision=PRECISION)
    im = tl.dot(here, q, input_precision=PRECISION)
    im = tl.dot(there, -p, im, input_precision=PRECISION)
    twiddle = tl.arange(0, D2P)[:, None] * D1P + tl.arange(0, D1P)[None, :]
    re, im = turn(
        tl.reshape(re, (ROWS, D2P, D1P)),
        tl.reshape(im, (ROWS, D2P, D1P)),
        tl.load(twiddle_re + twiddle)[None, :, :],
        tl.load(twiddle_im + twiddle)[None, :, :],
    )
    square_2 = tl.arange(0, D2P)[:, None] * D2P + tl.arange(0, D2P)[None, :]
    out = real_product(
        digit_last(re.to(p.dtype), ROWS, D2P, D1P),
        digit_last(im.to(p.dtype), ROWS, D2P, D1P),
        tl.load(width_2_re + square_2),
        tl.load(width_2_im + square_2),
        PRECISION,
    )
    out = tl.reshape(out.to(g.dtype.element_ty), (ROWS, D1P, D2P))

    g += b * N * W
    j1 = tl.arange(0, D1P)
    j2 = tl.arange(0, D2P)
    row = first + tl.arange(0, ROWS)
    j = j1[None, None, :] + D1 * j2[None, :, None]
    n = row[:, None, None]
    back = tl.where(n == 0, 0, N - n)
    kept = (2 * n <= N) & (j1[None, None, :] < D1) & (j2[None, :, None] < D2)
    tl.store(g + back * W + j, tl.permute(out, (0, 2, 1)), mask=kept & (j < G))
    # Addresses descend along j1, which therefore comes first: threads follow the first axis where
    # none ascends.
    j = j1[:, None, None] + D1 * j2[None, :, None]
    mirror = tl.where(j == 0, 0, D - j)
    n = row[None, None, :]
    kept = (2 * n < N) & (n > 0) & (j1[:, None, None] < D1) & (j2[None, :, None] < D2)
    tl.store(g + n * W + mirror, tl.permute(out, (1, 2, 0)), mask=kept & (mirror < G))


@triton.jit
def mirror_kernel(
    planes,
    y,
    digit_re,
    digit_im,
    part,
    scale,
    N,
    W,
    COLUMNS,
    D: tl.constexpr,
    N1: tl.constexpr,
    NA: tl.constexpr,
    NB: tl.constexpr,
    NBP: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One line, to the rows k and -k and the columns j and -j of Y."""
    LINES: tl.constexpr = (N1 // 2 + 1) * NA
    # As many columns as whole vectors hold are stored on this side, all others on the other.
    G: tl.constexpr = (D // 2 + 8) // 8 * 8 if D % 16 == 0 else D // 2 + 1
    c = (tl.program_id(0) % COLUMNS) * C
    which = tl.program_id(0) // COLUMNS
    b = (which // LINES).to(tl.int64)
    line = which % LINES
    row = tl.arange(0, NBP)[:, None]
    j = c + tl.arange(0, C)[None, :]
    planes += which.to(tl.int64) * NB * W
    t_re, t_im = load_line(planes, part, row, j, W, W, NB)
    m_re, m_im = load_digit(digit_re, digit_im, NBP)
    s_re, s_im = product(m_re, m_im, t_re, t_im, PRECISION)
    dtype = y.dtype.element_ty
    here = ((s_re - s_im) * scale).to(dtype)
    there = ((s_re + s_im) * scale).to(dtype)

    y += b * N * D
    k = line_frequencies(line, N1, NA, NBP)
    kept = (row < NB) & (j < G)
    # The planes 0 and H hold -k beside k.
    inner = 2 * k % N1 != 0
    tl.store(y + k * D + j, here, mask=kept)
    tl.store(y + (N - k) * D + j, there, mask=kept & inner)
    # Columns come first where addresses descend along them, as in ``width_kernel``.
    j = c + tl.arange(0, C)[:, None]
    k = tl.trans(k)
    kept = (tl.trans(row) < NB) & (j > 0) & (D - j >= G)
    inner = 2 * k % N1 != 0
    tl.store(y + k * D + (D - j), tl.trans(there), mask=kept)
    tl.store(y + (N - k) * D + (D - j), tl.trans(here), mask=kept & inner)

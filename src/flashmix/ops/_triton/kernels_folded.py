"""The DFT along the tokens of one sequence of any length, as real products over folded tokens.

The even part E[n] = x[n] + x[L - n] and the odd part O[n] = x[n] - x[L - n] of the tokens
n <= L / 2 give Re F = cos E and Im F = -sin O. Tokens 0 and, of an even length, L / 2 are their
own mirror images: they are counted once, and their odd part is zero.

Shapes: tiles of MODES modes and COLUMNS columns, which sum STEP folded tokens at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels_sequences import find_tile, folded_base, token_rows
from flashmix.ops._triton.kernels_turns import first_angles, next_angles


@triton.jit
def find_modes(program, lengths, offsets, S, N, K, MODES: tl.constexpr):
    """As :func:`find_tile`, for MODES modes; a sequence has K rows of modes where K is given."""
    if K is None:
        s, tile, start, length = find_tile(program, lengths, offsets, S, N, 2 * MODES)
    else:
        tiles = (K + MODES - 1) // MODES
        s = program // tiles
        tile = program % tiles
        start = 0
        length = N
        if offsets is not None:
            start = tl.load(offsets + s)
            length = tl.load(offsets + s + 1) - start
    return s, tile, start, length


@triton.jit
def mode_base(offsets, s, start, N, K):
    """The first of the rows of modes of sequence ``s``, int64; L // 2 + 1 of them without K."""
    if K is not None:
        return s.to(tl.int64) * K
    return folded_base(offsets, s, start, N)


@triton.jit(do_not_specialize=["S", "N", "R"])
def fold_kernel(
    x,
    folded,
    order,
    lengths,
    offsets,
    S,
    N,
    stride_s,
    stride_n,
    stride_d,
    R,
    D: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Half of E and of O at the folded rows of one tile."""
    ACROSS: tl.constexpr = (W + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0) // ACROSS
    s, tile, start, length = find_tile(program, lengths, offsets, S, N, 2 * ROWS)
    if (2 * tile * ROWS <= length) & (length > 0):
        n = tile * ROWS + tl.arange(0, ROWS)
        # A sequence of one token has one folded row.
        kept = (2 * n <= length) & (n < length)
        paired = (n > 0) & (2 * n < length)
        d = (tl.program_id(0) % ACROSS) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        tokens = x + s.to(tl.int64) * stride_s + d * stride_d
        here = tokens + token_rows(order, s, start, n, kept, N)[:, None] * stride_n
        back = tokens + token_rows(order, s, start, length - n, paired, N)[:, None] * stride_n
        a = tl.load(here, mask=kept[:, None] & (d < D), other=0.0).to(tl.float32)
        b = tl.load(back, mask=paired[:, None] & (d < D), other=0.0).to(tl.float32)
        # Halved, so that a sum of two stays in the range of float16.
        even = 0.5 * a + 0.5 * b
        odd = tl.where(paired[:, None], 0.5 * a - 0.5 * b, 0.0)
        dtype = folded.dtype.element_ty
        at = (folded_base(offsets, s, start, N) + n)[:, None] * W + d
        stored = kept[:, None] & (d < W)
        tl.store(folded + at, even.to(dtype), mask=stored)
        tl.store(folded + R.to(tl.int64) * W + at, odd.to(dtype), mask=stored)


@triton.jit
def analyse(
    x,
    grad,
    part,
    wanted,
    m,
    length,
    dtype: tl.constexpr,
    W: tl.constexpr,
    MODES: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Real and imaginary parts of the modes ``m`` of x, and of ``grad`` where it is not None.

    Both are addresses of the first folded row of a sequence, [1, COLUMNS], with O ``part`` elements
    behind E; ``wanted`` are the columns to load.
    """
    x_re = tl.zeros((MODES, COLUMNS), tl.float32)
    x_im = tl.zeros((MODES, COLUMNS), tl.float32)
    g_re = tl.zeros((MODES, COLUMNS), tl.float32)
    g_im = tl.zeros((MODES, COLUMNS), tl.float32)
    turned, c, sn, step, step_c, step_s = first_angles(m, length, STEP)
    for first in range(0, length // 2 + 1, STEP):
        n = first + tl.arange(0, STEP)[:, None]
        kept = (2 * n <= length) & (n < length) & wanted
        even = tl.load(x + n * W, mask=kept, other=0.0)
        odd = tl.load(x + part + n * W, mask=kept, other=0.0)
        x_re = tl.dot(c.to(dtype), even, x_re, input_precision=PRECISION)
        x_im = tl.dot(sn.to(dtype), odd, x_im, input_precision=PRECISION)
        if grad is not None:
            even = tl.load(grad + n * W, mask=kept, other=0.0)
            odd = tl.load(grad + part + n * W, mask=kept, other=0.0)
            g_re = tl.dot(c.to(dtype), even, g_re, input_precision=PRECISION)
            g_im = tl.dot(sn.to(dtype), odd, g_im, input_precision=PRECISION)
        turned, c, sn = next_angles(turned, c, sn, step, step_c, step_s, length, EXACT)
    return 2 * x_re, -2 * x_im, 2 * g_re, -2 * g_im


@triton.jit
def store_padding(
    y,
    order,
    s,
    length,
    tile,
    stride_n,
    N,
    wanted,
    dtype: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Zeros at the padding of a sequence, of which each of its tiles has 2 ROWS tokens."""
    pad = length + tile * (2 * ROWS) + tl.arange(0, 2 * ROWS)
    if length + tile * (2 * ROWS) < N:
        rows = token_rows(order, s, 0, pad, pad < N, N)[:, None] * stride_n
        tl.store(y + rows, tl.zeros((2 * ROWS, COLUMNS), dtype), mask=(pad < N)[:, None] & wanted)

"""A filter over few modes as skinny matrix products; ``plan`` says how tokens and modes fold.

Analysis reads x once and sums its modes; the filter works on those alone; synthesis writes y once.

Shapes: B batch, N tokens, D channels, L folded tokens, S parts that the sum over L is split in.
Spectra are [S, B, classes, MP, 2, D] float32 (real and imaginary parts), and filtered ones
[B, classes, MP, 2, D] in x's dtype; the DFT matrix is [classes, MP, LP].
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def analysis_kernel(
    x,
    matrix_re,
    matrix_im,
    spectrum,
    stride_b,
    stride_n,
    stride_d,
    B,
    D,
    L,
    MP,
    LP,
    PART,
    CLASSES: tl.constexpr,
    M_BLOCK: tl.constexpr,
    L_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of modes of one sequence, summed over PART folded tokens."""
    d = tl.program_id(0) * D_BLOCK + tl.arange(0, D_BLOCK)[None, :]
    m = tl.program_id(1) * M_BLOCK + tl.arange(0, M_BLOCK)[:, None]
    b = (tl.program_id(2) % B).to(tl.int64)
    part = tl.program_id(2) // B
    dtype = x.dtype.element_ty
    x += b * stride_b + d * stride_d

    even_re = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    even_im = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    odd_re = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    odd_im = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    row = tl.arange(0, L_BLOCK)
    for start in range(part * PART, tl.minimum(part * PART + PART, L), L_BLOCK):
        n = start + row[:, None]
        kept = (n < L) & (d < D)
        tile = tl.load(x + n * stride_n, mask=kept, other=0.0)
        at = m * LP + start + row[None, :]
        at_kept = start + row[None, :] < LP
        e_re = tl.load(matrix_re + at, mask=at_kept, other=0.0)
        e_im = tl.load(matrix_im + at, mask=at_kept, other=0.0)
        if CLASSES == 2:
            late = tl.load(x + (n + L) * stride_n, mask=kept, other=0.0)
            o_re = tl.load(matrix_re + MP * LP + at, mask=at_kept, other=0.0)
            o_im = tl.load(matrix_im + MP * LP + at, mask=at_kept, other=0.0)
            first = tile.to(tl.float32)
            second = late.to(tl.float32)
            folded = (first - second).to(dtype)
            tile = (first + second).to(dtype)
            odd_re = tl.dot(o_re, folded, odd_re, input_precision=PRECISION)
            odd_im = tl.dot(o_im, folded, odd_im, input_precision=PRECISION)
        even_re = tl.dot(e_re, tile, even_re, input_precision=PRECISION)
        even_im = tl.dot(e_im, tile, even_im, input_precision=PRECISION)

    to = spectrum + (part * B + b) * CLASSES * MP * 2 * D + m * 2 * D + d
    tl.store(to, even_re, mask=d < D)
    tl.store(to + D, even_im, mask=d < D)
    if CLASSES == 2:
        tl.store(to + MP * 2 * D, odd_re, mask=d < D)
        tl.store(to + MP * 2 * D + D, odd_im, mask=d < D)


@triton.jit
def filter_kernel(
    spectrum,
    weight,
    filtered,
    scale,
    B,
    D,
    N,
    MP,
    KEPT,
    PARTS,
    CLASSES: tl.constexpr,
    CONJUGATE: tl.constexpr,
    UNITARY: tl.constexpr,
    M_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """Multiply the modes of one sequence by W (or W - 1 when unitary: the rest is added later)."""
    d = tl.program_id(0) * D_BLOCK + tl.arange(0, D_BLOCK)[None, :]
    i = tl.program_id(1) * M_BLOCK + tl.arange(0, M_BLOCK)[:, None]
    b = tl.program_id(2).to(tl.int64)
    k = i // MP
    mode = CLASSES * (i % MP) + k
    kept = (i < CLASSES * MP) & (mode < KEPT) & (d < D)
    size = CLASSES * MP * 2 * D
    at = b * size + i * 2 * D + d
    re = tl.load(spectrum + at, mask=kept, other=0.0)
    im = tl.load(spectrum + at + D, mask=kept, other=0.0)
    for part in range(1, PARTS):
        later = tl.cast(B * part, tl.int64) * size + at
        re += tl.load(spectrum + later, mask=kept, other=0.0)
        im += tl.load(spectrum + later + D, mask=kept, other=0.0)

    own = (mode == 0) | (2 * mode == N)
    w = (mode * D + d) * 2
    w_re = tl.load(weight + w, mask=kept, other=0.0)
    w_im = tl.where(own, 0.0, tl.load(weight + w + 1, mask=kept, other=0.0))
    if UNITARY:
        w_re = tl.where(own, 0.0, w_re - 1.0)
    if CONJUGATE:
        w_im = -w_im
    # Every mode but the self-conjugate ones stands for itself and its mirror image.
    share = tl.where(own, 1.0, 2.0) * scale
    dtype = filtered.dtype.element_ty
    store = (i < CLASSES * MP) & (d < D)
    tl.store(filtered + at, (share * (w_re * re - w_im * im)).to(dtype), mask=store)
    tl.store(filtered + at + D, (share * (w_re * im + w_im * re)).to(dtype), mask=store)


@triton.jit
def weight_grad_kernel(
    spectrum,
    upstream,
    grad_weight,
    scale,
    ROWS,
    D,
    N,
    MP,
    KEPT,
    PARTS,
    CLASSES: tl.constexpr,
    UNITARY: tl.constexpr,
    M_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """Sum over the ROWS sequences of conj(X) G, for a block of modes and channels."""
    d = tl.program_id(0) * D_BLOCK + tl.arange(0, D_BLOCK)[None, :]
    i = tl.program_id(1) * M_BLOCK + tl.arange(0, M_BLOCK)[:, None]
    mode = CLASSES * (i % MP) + i // MP
    kept = (i < CLASSES * MP) & (mode < KEPT) & (d < D)
    size = CLASSES * MP * 2 * D
    sum_re = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    sum_im = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    for b in range(ROWS):
        x_re = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
        x_im = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
        g_re = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
        g_im = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
        for part in range(PARTS):
            base = tl.cast(part * ROWS + b, tl.int64) * size
            at = base + i * 2 * D + d
            x_re += tl.load(spectrum + at, mask=kept, other=0.0)
            x_im += tl.load(spectrum + at + D, mask=kept, other=0.0)
            g_re += tl.load(upstream + at, mask=kept, other=0.0)
            g_im += tl.load(upstream + at + D, mask=kept, other=0.0)
        sum_re += x_re * g_re + x_im * g_im
        sum_im += x_re * g_im - x_im * g_re

    own = (mode == 0) | (2 * mode == N)
    share = tl.where(own, 1.0, 2.0) * scale
    if UNITARY:
        share = tl.where(own, 0.0, share)
    w = (mode * D + d) * 2
    tl.store(grad_weight + w, share * sum_re, mask=kept)
    tl.store(grad_weight + w + 1, tl.where(own, 0.0, share * sum_im), mask=kept)


@triton.jit
def synthesis_kernel(
    filtered,
    matrix_re,
    matrix_im,
    bias,
    x,
    y,
    stride_b,
    stride_n,
    stride_d,
    scale,
    D,
    L,
    MP,
    LP,
    CLASSES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADD_X: tl.constexpr,
    M_BLOCK: tl.constexpr,
    L_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Real signal of the filtered modes at some folded tokens and channels of one sequence."""
    d = tl.program_id(0) * D_BLOCK + tl.arange(0, D_BLOCK)[None, :]
    start = tl.program_id(1) * L_BLOCK
    b = tl.program_id(2).to(tl.int64)
    filtered += b * CLASSES * MP * 2 * D + d
    row = tl.arange(0, L_BLOCK)
    even = tl.zeros((L_BLOCK, D_BLOCK), tl.float32)
    odd = tl.zeros((L_BLOCK, D_BLOCK), tl.float32)
    column_kept = start + row[None, :] < LP
    for first in range(0, MP, M_BLOCK):
        m = first + tl.arange(0, M_BLOCK)[:, None]
        at = m * LP + start + row[None, :]
        e_re = tl.load(matrix_re + at, mask=column_kept, other=0.0)
        e_im = tl.load(matrix_im + at, mask=column_kept, other=0.0)
        z_re = tl.load(filtered + m * 2 * D, mask=d < D, other=0.0)
        z_im = tl.load(filtered + m * 2 * D + D, mask=d < D, other=0.0)
        even = tl.dot(tl.trans(e_re), z_re, even, input_precision=PRECISION)
        even = tl.dot(tl.trans(e_im), z_im, even, input_precision=PRECISION)
        if CLASSES == 2:
            o_re = tl.load(matrix_re + MP * LP + at, mask=column_kept, other=0.0)
            o_im = tl.load(matrix_im + MP * LP + at, mask=column_kept, other=0.0)
            v_re = tl.load(filtered + (MP + m) * 2 * D, mask=d < D, other=0.0)
            v_im = tl.load(filtered + (MP + m) * 2 * D + D, mask=d < D, other=0.0)
            odd = tl.dot(tl.trans(o_re), v_re, odd, input_precision=PRECISION)
            odd = tl.dot(tl.trans(o_im), v_im, odd, input_precision=PRECISION)

    n = start + row[:, None]
    kept = (n < L) & (d < D)
    dtype = y.dtype.element_ty
    at_y = b * CLASSES * L * D + n * D + d
    at_x = b * stride_b + n * stride_n + d * stride_d
    for half in tl.static_range(CLASSES):
        out = (even + odd if half == 0 else even - odd) * scale
        if HAS_BIAS:
            out += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
        if ADD_X:
            out += tl.load(x + at_x + half * L * stride_n, mask=kept, other=0.0).to(tl.float32)
        tl.store(y + at_y + half * L * D, out.to(dtype), mask=kept)

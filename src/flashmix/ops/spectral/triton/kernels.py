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
def _factor(weight, mode, d, kept, scale, D, N, CONJUGATE: tl.constexpr, UNITARY: tl.constexpr):
    """What a mode is multiplied by: W, or W - 1 when unitary (the rest is added later)."""
    own = (mode == 0) | (2 * mode == N)
    at = weight + (mode * D + d) * 2
    re = tl.load(at, mask=kept, other=0.0)
    im = tl.where(own, 0.0, tl.load(at + 1, mask=kept, other=0.0))
    if UNITARY:
        re = tl.where(own | ~kept, 0.0, re - 1.0)
    if CONJUGATE:
        im = -im
    # Every mode but the self-conjugate ones stands for itself and its mirror image.
    share = tl.where(own, 1.0, 2.0) * scale
    return share * re, share * im


@triton.jit
def _store_modes(to, re, im, factor_re, factor_im, D, kept):
    dtype = to.dtype.element_ty
    tl.store(to, (factor_re * re - factor_im * im).to(dtype), mask=kept)
    tl.store(to + D, (factor_re * im + factor_im * re).to(dtype), mask=kept)


@triton.jit
def analysis_kernel(
    x,
    matrix_re,
    matrix_im,
    spectrum,
    weight,
    scale,
    stride_b,
    stride_n,
    stride_d,
    B,
    D,
    L,
    MP,
    LP,
    PART,
    N,
    KEPT,
    CLASSES: tl.constexpr,
    FILTER: tl.constexpr,
    UNITARY: tl.constexpr,
    M_BLOCK: tl.constexpr,
    L_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of modes of one sequence, summed over PART folded tokens.

    With ``FILTER`` (and one part) they are stored filtered, in the layout for synthesis.
    """
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
    one_re = tl.full((M_BLOCK, D_BLOCK), 1.0, tl.float32)
    one_im = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    for k in tl.static_range(CLASSES):
        mode = CLASSES * m + k
        if FILTER:
            kept = (mode < KEPT) & (d < D)
            one_re, one_im = _factor(weight, mode, d, kept, scale, D, N, False, UNITARY)
        re = even_re if k == 0 else odd_re
        im = even_im if k == 0 else odd_im
        _store_modes(to + k * MP * 2 * D, re, im, one_re, one_im, D, d < D)


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
    """Sum the parts of the modes of one sequence and multiply them by W or its conjugate."""
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

    w_re, w_im = _factor(weight, mode, d, kept, scale, D, N, CONJUGATE, UNITARY)
    _store_modes(filtered + at, re, im, w_re, w_im, D, (i < CLASSES * MP) & (d < D))


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
def _add_modes(out, matrix_re, matrix_im, z_re, z_im, kept, PRECISION: tl.constexpr):
    """``out`` [L, D] plus the modes z [M, D] at the tokens of the matrix pointers [M, L]."""
    e_re = tl.trans(tl.load(matrix_re, mask=kept, other=0.0))
    e_im = tl.trans(tl.load(matrix_im, mask=kept, other=0.0))
    out = tl.dot(e_re, z_re, out, input_precision=PRECISION)
    return tl.dot(e_im, z_im, out, input_precision=PRECISION)


@triton.jit
def _load_modes(filtered, m, D, kept):
    at = filtered + m * 2 * D
    return tl.load(at, mask=kept, other=0.0), tl.load(at + D, mask=kept, other=0.0)


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
    STEP,
    CLASSES: tl.constexpr,
    BLOCKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADD_X: tl.constexpr,
    M_BLOCK: tl.constexpr,
    L_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Real signal of the filtered modes at STEP folded tokens of one sequence.

    The modes are read once where one block holds them all.
    """
    d = tl.program_id(0) * D_BLOCK + tl.arange(0, D_BLOCK)[None, :]
    b = tl.program_id(2).to(tl.int64)
    dtype = y.dtype.element_ty
    filtered += b * CLASSES * MP * 2 * D + d
    y += b * CLASSES * L * D + d
    x += b * stride_b + d * stride_d
    row = tl.arange(0, L_BLOCK)
    m = tl.arange(0, M_BLOCK)[:, None]
    if BLOCKS == 1:
        z_re, z_im = _load_modes(filtered, m, D, d < D)
        v_re, v_im = _load_modes(filtered, (CLASSES - 1) * MP + m, D, d < D)
    begin = tl.program_id(1) * STEP
    for start in range(begin, tl.minimum(begin + STEP, L), L_BLOCK):
        even = tl.zeros((L_BLOCK, D_BLOCK), tl.float32)
        odd = tl.zeros((L_BLOCK, D_BLOCK), tl.float32)
        at_kept = start + row[None, :] < LP
        for block in tl.static_range(BLOCKS):
            mode = block * M_BLOCK + m
            if BLOCKS > 1:
                z_re, z_im = _load_modes(filtered, mode, D, d < D)
            re = matrix_re + mode * LP + start + row[None, :]
            im = matrix_im + mode * LP + start + row[None, :]
            even = _add_modes(even, re, im, z_re, z_im, at_kept, PRECISION)
            if CLASSES == 2:
                if BLOCKS > 1:
                    v_re, v_im = _load_modes(filtered, MP + mode, D, d < D)
                odd = _add_modes(odd, re + MP * LP, im + MP * LP, v_re, v_im, at_kept, PRECISION)
        n = start + row[:, None]
        kept = (n < L) & (d < D)
        for half in tl.static_range(CLASSES):
            out = (even + odd if half == 0 else even - odd) * scale
            if HAS_BIAS:
                out += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
            if ADD_X:
                late = tl.load(x + (n + half * L) * stride_n, mask=kept, other=0.0)
                out += late.to(tl.float32)
            tl.store(y + (n + half * L) * D, out.to(dtype), mask=kept)

"""A filter over few modes as skinny matrix products; ``plan`` says how tokens and modes fold.

Analysis reads x once and sums its modes; the filter works on those alone; synthesis writes y once.

Channels are the rows of both products: tokens enter the first from the registers they fold in.

Shapes: B batch, N tokens, D channels, L folded tokens, S parts that the sum over L is split in.
Spectra are [S, B, parities, 2, MP, D] float32 (real and imaginary parts), and filtered ones
[B, parities, 2, MP, D] in x's dtype; the matrix is [parities, 2, MP, LP]. H = N / 2.
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
def _store_modes(to, re, im, factor_re, factor_im, part, kept):
    dtype = to.dtype.element_ty
    tl.store(to, (factor_re * re - factor_im * im).to(dtype), mask=kept)
    tl.store(to + part, (factor_re * im + factor_im * re).to(dtype), mask=kept)


@triton.jit
def analysis_kernel(
    x,
    matrix,
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
    PARITIES: tl.constexpr,
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
    d = tl.program_id(0) * D_BLOCK + tl.arange(0, D_BLOCK)[:, None]
    m = tl.program_id(1) * M_BLOCK + tl.arange(0, M_BLOCK)[None, :]
    b = (tl.program_id(2) % B).to(tl.int64)
    part = tl.program_id(2) // B
    dtype = x.dtype.element_ty
    x += b * stride_b + d * stride_d
    H = N // 2
    step = tl.arange(0, L_BLOCK)
    even_re = tl.zeros((D_BLOCK, M_BLOCK), tl.float32)
    even_im = tl.zeros_like(even_re)
    odd_re = tl.zeros_like(even_re)
    odd_im = tl.zeros_like(even_re)
    for start in range(part * PART, tl.minimum(part * PART + PART, L), L_BLOCK):
        n = start + step[None, :]
        kept = (n < L) & (d < D)
        twin = (n < H // 2) & (d < D)
        x_n = tl.load(x + n * stride_n, mask=kept, other=0.0)
        entry = matrix + m * LP + start + step[:, None]
        inside = start + step[:, None] < LP
        e_re = tl.load(entry, mask=inside, other=0.0)
        e_im = tl.load(entry + MP * LP, mask=inside, other=0.0)
        if PARITIES == 1:
            even_re = tl.dot(x_n, e_re, even_re, input_precision=PRECISION)
            even_im = tl.dot(x_n, e_im, even_im, input_precision=PRECISION)
        else:
            x_n = x_n.to(tl.float32)
            x_m = tl.load(x + (H - 1 - n) * stride_n, mask=twin, other=0.0).to(tl.float32)
            x_t = tl.load(x + (H + n) * stride_n, mask=twin, other=0.0).to(tl.float32)
            x_l = tl.load(x + (N - 1 - n) * stride_n, mask=kept, other=0.0).to(tl.float32)
            o_re = tl.load(entry + 2 * MP * LP, mask=inside, other=0.0)
            o_im = tl.load(entry + 3 * MP * LP, mask=inside, other=0.0)
            s = x_n + x_l
            t = x_m + x_t
            u = x_n - x_l
            v = x_m - x_t
            even_re = tl.dot((s + t).to(dtype), e_re, even_re, input_precision=PRECISION)
            odd_re = tl.dot((s - t).to(dtype), o_re, odd_re, input_precision=PRECISION)
            even_im = tl.dot((u - v).to(dtype), e_im, even_im, input_precision=PRECISION)
            odd_im = tl.dot((u + v).to(dtype), o_im, odd_im, input_precision=PRECISION)

    plane = MP * D
    to = spectrum + (part * B + b) * PARITIES * 2 * plane + m * D + d
    one_re = tl.full(even_re.shape, 1.0, tl.float32)
    one_im = tl.zeros(even_re.shape, tl.float32)
    for k in tl.static_range(PARITIES):
        mode = PARITIES * m + k
        if FILTER:
            kept = (mode < KEPT) & (d < D)
            one_re, one_im = _factor(weight, mode, d, kept, scale, D, N, False, UNITARY)
        re = even_re if k == 0 else odd_re
        im = even_im if k == 0 else odd_im
        _store_modes(to + k * 2 * plane, re, im, one_re, one_im, plane, d < D)


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
    PARITIES: tl.constexpr,
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
    mode = PARITIES * (i % MP) + k
    kept = (i < PARITIES * MP) & (mode < KEPT) & (d < D)
    plane = MP * D
    size = PARITIES * 2 * plane
    at = b * size + (k * MP + i) * D + d
    re = tl.load(spectrum + at, mask=kept, other=0.0)
    im = tl.load(spectrum + at + plane, mask=kept, other=0.0)
    for part in range(1, PARTS):
        later = tl.cast(B * part, tl.int64) * size + at
        re += tl.load(spectrum + later, mask=kept, other=0.0)
        im += tl.load(spectrum + later + plane, mask=kept, other=0.0)

    w_re, w_im = _factor(weight, mode, d, kept, scale, D, N, CONJUGATE, UNITARY)
    _store_modes(filtered + at, re, im, w_re, w_im, plane, (i < PARITIES * MP) & (d < D))


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
    PARTS: tl.constexpr,
    PARITIES: tl.constexpr,
    UNITARY: tl.constexpr,
    M_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """Sum over the ROWS sequences of conj(X) G, for a block of modes and channels."""
    d = tl.program_id(0) * D_BLOCK + tl.arange(0, D_BLOCK)[None, :]
    i = tl.program_id(1) * M_BLOCK + tl.arange(0, M_BLOCK)[:, None]
    mode = PARITIES * (i % MP) + i // MP
    kept = (i < PARITIES * MP) & (mode < KEPT) & (d < D)
    plane = MP * D
    size = PARITIES * 2 * plane
    sum_re = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    sum_im = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    for b in tl.range(0, ROWS, loop_unroll_factor=4):
        x_re = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
        x_im = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
        g_re = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
        g_im = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
        for part in tl.static_range(PARTS):
            base = tl.cast(part * ROWS + b, tl.int64) * size
            at = base + (i // MP * MP + i) * D + d
            x_re += tl.load(spectrum + at, mask=kept, other=0.0)
            x_im += tl.load(spectrum + at + plane, mask=kept, other=0.0)
            g_re += tl.load(upstream + at, mask=kept, other=0.0)
            g_im += tl.load(upstream + at + plane, mask=kept, other=0.0)
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
def _load_modes(filtered, m, MP, D, kept):
    at = filtered + m * D
    return tl.load(at, mask=kept, other=0.0), tl.load(at + MP * D, mask=kept, other=0.0)


@triton.jit
def synthesis_kernel(
    filtered,
    matrix,
    bias,
    x,
    y,
    stride_b,
    stride_n,
    stride_d,
    scale,
    N,
    D,
    L,
    MP,
    LP,
    STEP,
    PARITIES: tl.constexpr,
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
    d = tl.program_id(0) * D_BLOCK + tl.arange(0, D_BLOCK)[:, None]
    b = tl.program_id(2).to(tl.int64)
    dtype = y.dtype.element_ty
    filtered += b * PARITIES * 2 * MP * D + d
    y += b * N * D + d
    x += b * stride_b + d * stride_d
    H = N // 2
    m = tl.arange(0, M_BLOCK)[None, :]
    odd = (PARITIES - 1) * 2 * MP * D
    if BLOCKS == 1:
        z_re, z_im = _load_modes(filtered, m, MP, D, d < D)
        v_re, v_im = _load_modes(filtered + odd, m, MP, D, d < D)
    begin = tl.program_id(1) * STEP
    for start in range(begin, tl.minimum(begin + STEP, L), L_BLOCK):
        n = start + tl.arange(0, L_BLOCK)[None, :]
        even_re = tl.zeros((D_BLOCK, L_BLOCK), tl.float32)
        even_im = tl.zeros_like(even_re)
        odd_re = tl.zeros_like(even_re)
        odd_im = tl.zeros_like(even_re)
        for block in tl.static_range(BLOCKS):
            if BLOCKS > 1:
                z_re, z_im = _load_modes(filtered, block * M_BLOCK + m, MP, D, d < D)
            row = block * M_BLOCK + tl.arange(0, M_BLOCK)[:, None]
            entry = matrix + row * LP + n
            e_re = tl.load(entry, mask=n < LP, other=0.0)
            e_im = tl.load(entry + MP * LP, mask=n < LP, other=0.0)
            even_re = tl.dot(z_re, e_re, even_re, input_precision=PRECISION)
            even_im = tl.dot(z_im, e_im, even_im, input_precision=PRECISION)
            if PARITIES == 2:
                if BLOCKS > 1:
                    v_re, v_im = _load_modes(filtered + odd, block * M_BLOCK + m, MP, D, d < D)
                o_re = tl.load(entry + 2 * MP * LP, mask=n < LP, other=0.0)
                o_im = tl.load(entry + 3 * MP * LP, mask=n < LP, other=0.0)
                odd_re = tl.dot(v_re, o_re, odd_re, input_precision=PRECISION)
                odd_im = tl.dot(v_im, o_im, odd_im, input_precision=PRECISION)
        first = (n < L) & (d < D)
        twin = (n < H // 2) & (d < D)
        add = tl.zeros((1, 1), tl.float32)
        if HAS_BIAS:
            add = tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
        for quarter in tl.static_range(PARITIES * PARITIES):
            if quarter == 0:
                to, kept, out = n, first, (even_re + odd_re) + (even_im + odd_im)
            elif quarter == 1:
                to, kept, out = H - 1 - n, twin, (even_re - odd_re) - (even_im - odd_im)
            elif quarter == 2:
                to, kept, out = H + n, twin, (even_re - odd_re) + (even_im - odd_im)
            else:
                to, kept, out = N - 1 - n, first, (even_re + odd_re) - (even_im + odd_im)
            out = out * scale + add
            if ADD_X:
                out += tl.load(x + to * stride_n, mask=kept, other=0.0).to(tl.float32)
            tl.store(y + to * D, out.to(dtype), mask=kept)

"""Transforms along tokens of real columns; ``plan`` says how the digits are named.

Planes are [2, B, H + 1, N2, W]: real and imaginary parts, ``part`` elements apart, in rows of W
elements of which D are columns. A line is the NB rows of one plane k1 and, in three digits, one ka.

1. ``planes_kernel``: the n1 of a real signal to the planes k1.
2. ``stage_kernel``, in place, in three digits only: na to ka.
3. One line at a time: nb to kb, so that each row is a frequency k = k1 + N1 * (ka + NA * kb); what
   is done there, and the way back (``filter_kernel``, ``filter_grad_kernel``), or an output.
4. ``stage_kernel`` inverse, ``signal_kernel``: the way back.

Every product is followed by its twiddle in float32, so each pass rounds once. Programs are numbered
with their columns fastest.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels_complex import product, turn


@triton.jit
def planes_kernel(
    x,
    planes,
    analysis_re,
    analysis_im,
    twiddle_re,
    twiddle_im,
    last_re,
    last_im,
    part,
    stride_b,
    stride_n,
    stride_d,
    B,
    PER,
    LENGTH,
    N2,
    D,
    W,
    COLUMNS,
    N1: tl.constexpr,
    N1P: tl.constexpr,
    HP: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows n2, n2 + N2, ... of PER sequences, zero from LENGTH on, to row n2 of their planes."""
    H: tl.constexpr = N1 // 2
    c = (tl.program_id(0) % COLUMNS) * C + tl.arange(0, C)[None, :]
    n2 = (tl.program_id(0) // COLUMNS) % N2
    share = tl.program_id(0) // COLUMNS // N2
    n1 = tl.arange(0, N1P)[:, None]
    n = n1 * N2 + n2
    kept = (n1 < N1) & (n < LENGTH) & (c < D)
    k1 = tl.arange(0, HP)[:, None]
    entry = k1 * N1P + tl.arange(0, N1P)[None, :]
    # Matrices of float32 products take too much room to be kept.
    KEEP: tl.constexpr = PRECISION == "ieee"
    if KEEP:
        m_re = tl.load(analysis_re + entry)
        m_im = tl.load(analysis_im + entry)
    w_re = tl.load(twiddle_re + n2 * HP + k1)
    w_im = tl.load(twiddle_im + n2 * HP + k1)
    last_re = tl.load(last_re + n2)
    last_im = tl.load(last_im + n2)
    dtype = planes.dtype.element_ty
    at = (k1 * N2 + n2) * W + c
    inside = (k1 < H) & (c < D)
    last = at + H * N2 * W
    first = (k1 == 0) & (c < D)
    x += n * stride_n + c * stride_d
    for b in range(share * PER, tl.minimum(share * PER + PER, B)):
        if not KEEP:
            m_re = tl.load(analysis_re + entry)
            m_im = tl.load(analysis_im + entry)
        rows = tl.load(x + tl.cast(b, tl.int64) * stride_b, mask=kept, other=0.0).to(dtype)
        re = tl.dot(m_re, rows, input_precision=PRECISION)
        im = tl.dot(m_im, rows, input_precision=PRECISION)
        # The planes 0 and H are real before their twiddle, and share the first row of the product.
        t_re, t_im = turn(re, tl.where(k1 == 0, 0.0, im), w_re, w_im)
        to = planes + tl.cast(b, tl.int64) * (H + 1) * N2 * W
        tl.store(to + at, t_re.to(dtype), mask=inside)
        tl.store(to + part + at, t_im.to(dtype), mask=inside)
        tl.store(to + last, (im * last_re).to(dtype), mask=first)
        tl.store(to + part + last, (im * last_im).to(dtype), mask=first)


@triton.jit
def stage_kernel(
    planes,
    digit_re,
    digit_im,
    twiddle_re,
    twiddle_im,
    part,
    PLANES,
    D,
    W,
    COLUMNS,
    NA: tl.constexpr,
    NB: tl.constexpr,
    NAP: tl.constexpr,
    C: tl.constexpr,
    INVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The rows nb, nb + NB, ... of one plane, in place: na to ka, or back."""
    c = (tl.program_id(0) % COLUMNS) * C + tl.arange(0, C)[None, :]
    nb = (tl.program_id(0) // COLUMNS) % NB
    plane = tl.program_id(0) // COLUMNS // NB
    k1 = plane % PLANES
    planes += plane.to(tl.int64) * NA * NB * W
    digit = tl.arange(0, NAP)[:, None]
    row = digit * NB + nb
    at = row * W + c
    kept = (digit < NA) & (c < D)
    t_re = tl.load(planes + at, mask=kept, other=0.0)
    t_im = tl.load(planes + part + at, mask=kept, other=0.0)
    entry = digit * NAP + tl.arange(0, NAP)[None, :]
    m_re = tl.load(digit_re + entry)
    m_im = tl.load(digit_im + entry)
    turned = row
    if INVERSE:
        m_im = -m_im
        turned += k1 * NA * NB
    s_re, s_im = product(m_re, m_im, t_re, t_im, PRECISION)
    w_re = tl.load(twiddle_re + turned, mask=digit < NA, other=0.0)
    w_im = tl.load(twiddle_im + turned, mask=digit < NA, other=0.0)
    if INVERSE:
        w_im = -w_im
    s_re, s_im = turn(s_re, s_im, w_re, w_im)
    tl.store(planes + at, s_re.to(planes.dtype.element_ty), mask=kept)
    tl.store(planes + part + at, s_im.to(planes.dtype.element_ty), mask=kept)


@triton.jit
def line_frequencies(line, N1: tl.constexpr, NA: tl.constexpr, NBP: tl.constexpr):
    """The frequencies of a line's rows, [NBP, 1]."""
    return line // NA + N1 * (line % NA + NA * tl.arange(0, NBP)[:, None])


@triton.jit
def load_line(planes, part, row, c, D, W, NB: tl.constexpr):
    """Rows [NBP, 1] and columns [1, C] of a line: two tiles."""
    kept = (row < NB) & (c < D)
    re = tl.load(planes + row * W + c, mask=kept, other=0.0)
    im = tl.load(planes + part + row * W + c, mask=kept, other=0.0)
    return re, im


@triton.jit
def load_digit(digit_re, digit_im, NBP: tl.constexpr):
    """The square matrix of the last digit."""
    entry = tl.arange(0, NBP)[:, None] * NBP + tl.arange(0, NBP)[None, :]
    return tl.load(digit_re + entry), tl.load(digit_im + entry)


@triton.jit
def _factor(
    weight,
    stride_m,
    stride_d,
    k,
    c,
    kept,
    N,
    KEPT,
    UNITARY: tl.constexpr,
):
    """The filter's factor of the frequencies k, [NBP, C]."""
    mode = tl.minimum(k, N - k)
    own = (k == 0) | (2 * k == N)
    at = weight + (mode.to(tl.int64) * stride_m + c * stride_d)
    learned = kept & (mode < KEPT)
    re = tl.load(at, mask=learned, other=0.0)
    im = tl.load(at + 1, mask=learned & ~own, other=0.0)
    if UNITARY:
        re = tl.where(own | (mode >= KEPT), 1.0, re)
    return re, tl.where(2 * k > N, -im, im)


@triton.jit
def _store_back(
    planes,
    part,
    s_re,
    s_im,
    m_re,
    m_im,
    twiddle_re,
    twiddle_im,
    turned,
    row,
    c,
    D,
    W,
    NB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The inverse transform of a line, twiddled, to where it came from."""
    dtype = planes.dtype.element_ty
    t_re, t_im = product(m_re, -m_im, s_re.to(dtype), s_im.to(dtype), PRECISION)
    w_re = tl.load(twiddle_re + turned + row, mask=row < NB, other=0.0)
    w_im = tl.load(twiddle_im + turned + row, mask=row < NB, other=0.0)
    t_re, t_im = turn(t_re, t_im, w_re, -w_im)
    kept = (row < NB) & (c < D)
    tl.store(planes + row * W + c, t_re.to(dtype), mask=kept)
    tl.store(planes + part + row * W + c, t_im.to(dtype), mask=kept)


@triton.jit
def _along(i, ROWS: tl.constexpr):
    """A vector along the rows of a tile, or its columns."""
    if ROWS:
        return i[:, None]
    else:  # noqa: RET505
        return i[None, :]


@triton.jit
def _transform(m_re, m_im, minus, t_re, t_im, COLUMNS_FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """A line times a symmetric matrix, whose imaginary part comes with its negative."""
    if COLUMNS_FIRST:
        re = tl.dot(t_re, m_re, input_precision=PRECISION)
        re = tl.dot(t_im, minus, re, input_precision=PRECISION)
        im = tl.dot(t_re, m_im, input_precision=PRECISION)
        im = tl.dot(t_im, m_re, im, input_precision=PRECISION)
    else:
        re = tl.dot(m_re, t_re, input_precision=PRECISION)
        re = tl.dot(minus, t_im, re, input_precision=PRECISION)
        im = tl.dot(m_im, t_re, input_precision=PRECISION)
        im = tl.dot(m_re, t_im, im, input_precision=PRECISION)
    return re, im


@triton.jit
def filter_kernel(
    planes,
    weight,
    digit_re,
    digit_im,
    twiddle_re,
    twiddle_im,
    part,
    weight_m,
    weight_d,
    B,
    PER,
    N,
    KEPT,
    D,
    W,
    COLUMNS,
    N1: tl.constexpr,
    NA: tl.constexpr,
    NB: tl.constexpr,
    NBP: tl.constexpr,
    C: tl.constexpr,
    UNITARY: tl.constexpr,
    COLUMNS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One line of PER sequences, in place: to frequencies, times the filter, and back.

    With ``COLUMNS_FIRST`` they are the tile's rows, and frequencies enter the way back from
    registers.
    """
    LINES: tl.constexpr = (N1 // 2 + 1) * NA
    ROWS_FIRST: tl.constexpr = not COLUMNS_FIRST
    first = (tl.program_id(0) % COLUMNS) * C
    line = (tl.program_id(0) // COLUMNS) % LINES
    share = tl.program_id(0) // COLUMNS // LINES
    c = first + tl.arange(0, C)[None, :]
    k = line_frequencies(line, N1, NA, NBP)
    kept = (tl.arange(0, NBP)[:, None] < NB) & (c < D)
    w_re, w_im = _factor(weight, weight_m, weight_d, k, c, kept, N, KEPT, UNITARY)
    if COLUMNS_FIRST:
        w_re = tl.trans(w_re)
        w_im = tl.trans(w_im)
    c = _along(first + tl.arange(0, C), COLUMNS_FIRST)
    row = _along(tl.arange(0, NBP), ROWS_FIRST)
    kept = (row < NB) & (c < D)
    turned = (line if NA == 1 else line % NA) * NB + row
    v_re = tl.load(twiddle_re + turned, mask=row < NB, other=0.0)
    v_im = tl.load(twiddle_im + turned, mask=row < NB, other=0.0)
    dtype = planes.dtype.element_ty
    at = row * W + c
    if COLUMNS_FIRST:
        m_re, m_im = load_digit(digit_re, digit_im, NBP)
    for b in range(share * PER, tl.minimum(share * PER + PER, B)):
        if not COLUMNS_FIRST:
            m_re, m_im = load_digit(digit_re, digit_im, NBP)
        own = planes + (tl.cast(b, tl.int64) * LINES + line) * NB * W
        t_re, t_im = load_line(own, part, row, c, D, W, NB)
        s_re, s_im = _transform(m_re, m_im, -m_im, t_re, t_im, COLUMNS_FIRST, PRECISION)
        s_re, s_im = turn(s_re, s_im, w_re, w_im)
        s_re = s_re.to(dtype)
        s_im = s_im.to(dtype)
        t_re, t_im = _transform(m_re, -m_im, m_im, s_re, s_im, COLUMNS_FIRST, PRECISION)
        t_re, t_im = turn(t_re, t_im, v_re, -v_im)
        tl.store(own + at, t_re.to(dtype), mask=kept)
        tl.store(own + part + at, t_im.to(dtype), mask=kept)


@triton.jit
def filter_grad_kernel(
    x_planes,
    planes,
    weight,
    grad_weight,
    grad_bias,
    digit_re,
    digit_im,
    twiddle_re,
    twiddle_im,
    part,
    weight_m,
    weight_d,
    weight_scale,
    bias_scale,
    B,
    PER,
    N,
    KEPT,
    D,
    W,
    COLUMNS,
    N1: tl.constexpr,
    NA: tl.constexpr,
    NB: tl.constexpr,
    NBP: tl.constexpr,
    C: tl.constexpr,
    UNITARY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One line of PER sequences: ``planes`` of the output's gradient to those of the input's.

    Sums over these sequences are stored for W, [parts, KEPT, D, 2], and the bias, [parts, D].
    """
    LINES: tl.constexpr = (N1 // 2 + 1) * NA
    c = (tl.program_id(0) % COLUMNS) * C + tl.arange(0, C)[None, :]
    line = (tl.program_id(0) // COLUMNS) % LINES
    share = tl.program_id(0) // COLUMNS // LINES
    row = tl.arange(0, NBP)[:, None]
    k = line_frequencies(line, N1, NA, NBP)
    kept = (row < NB) & (c < D)
    turned = (line if NA == 1 else line % NA) * NB
    sum_re = tl.zeros((NBP, C), tl.float32)
    sum_im = tl.zeros((NBP, C), tl.float32)
    sum_bias = tl.zeros((NBP, C), tl.float32)
    for b in range(share * PER, tl.minimum(share * PER + PER, B)):
        offset = (tl.cast(b, tl.int64) * LINES + line) * NB * W
        m_re, m_im = load_digit(digit_re, digit_im, NBP)
        t_re, t_im = load_line(x_planes + offset, part, row, c, D, W, NB)
        x_re, x_im = product(m_re, m_im, t_re, t_im, PRECISION)
        t_re, t_im = load_line(planes + offset, part, row, c, D, W, NB)
        g_re, g_im = product(m_re, m_im, t_re, t_im, PRECISION)
        sum_re += x_re * g_re + x_im * g_im
        sum_im += x_re * g_im - x_im * g_re
        sum_bias += g_re
        w_re, w_im = _factor(weight, weight_m, weight_d, k, c, kept, N, KEPT, UNITARY)
        g_re, g_im = turn(g_re, g_im, w_re, -w_im)
        _store_back(
            planes + offset,
            part,
            g_re,
            g_im,
            m_re,
            m_im,
            twiddle_re,
            twiddle_im,
            turned,
            row,
            c,
            D,
            W,
            NB,
            PRECISION,
        )

    mode = tl.minimum(k, N - k)
    own = (k == 0) | (2 * k == N)
    scale = tl.where(own, 1.0, 2.0) * weight_scale
    if UNITARY:
        scale = tl.where(own, 0.0, scale)
    # Planes 0 and H hold each frequency and its mirror image, the others one of them.
    once = kept & (mode < KEPT) & ((2 * k <= N) | (2 * k % N1 != 0))
    at = grad_weight + ((share.to(tl.int64) * KEPT + mode) * D + c) * 2
    tl.store(at, scale * sum_re, mask=once)
    sum_im = tl.where(own, 0.0, tl.where(2 * k > N, -sum_im, sum_im))
    tl.store(at + 1, scale * sum_im, mask=once)
    to = grad_bias + share * D + c + 0 * row
    tl.store(to, bias_scale * sum_bias, mask=(k == 0) & (c < D))


@triton.jit
def signal_kernel(
    planes,
    y,
    bias,
    synthesis_re,
    synthesis_im,
    part,
    scale,
    B,
    PER,
    LENGTH,
    N2,
    D,
    W,
    COLUMNS,
    N1: tl.constexpr,
    N1P: tl.constexpr,
    HP: tl.constexpr,
    C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Row n2 of the planes of PER sequences to the rows n2, n2 + N2, ... below LENGTH of each."""
    H: tl.constexpr = N1 // 2
    c = (tl.program_id(0) % COLUMNS) * C + tl.arange(0, C)[None, :]
    n2 = (tl.program_id(0) // COLUMNS) % N2
    share = tl.program_id(0) // COLUMNS // N2
    k1 = tl.arange(0, HP)[:, None]
    at = (k1 * N2 + n2) * W + c
    inside = (k1 < H) & (c < D)
    # Planes 0 and H are real by now: the second stands where the first has no imaginary part.
    at_im = at + tl.where(k1 == 0, H * N2 * W, part)
    n1 = tl.arange(0, N1P)[:, None]
    entry = n1 * HP + tl.arange(0, HP)[None, :]
    KEEP: tl.constexpr = PRECISION == "ieee"
    if KEEP:
        m_re = tl.load(synthesis_re + entry)
        m_im = tl.load(synthesis_im + entry)
    add = tl.zeros((1, C), tl.float32)
    if HAS_BIAS:
        add = tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)
    n = n1 * N2 + n2
    kept = (n1 < N1) & (n < LENGTH) & (c < D)
    y += n * D + c
    for b in range(share * PER, tl.minimum(share * PER + PER, B)):
        if not KEEP:
            m_re = tl.load(synthesis_re + entry)
            m_im = tl.load(synthesis_im + entry)
        own = planes + tl.cast(b, tl.int64) * (H + 1) * N2 * W
        re = tl.load(own + at, mask=inside, other=0.0)
        im = tl.load(own + at_im, mask=inside, other=0.0)
        out = tl.dot(m_re, re, input_precision=PRECISION)
        out = tl.dot(m_im, im, out, input_precision=PRECISION)
        out = out * scale + add
        to = y + tl.cast(b, tl.int64) * LENGTH * D
        tl.store(to, out.to(y.dtype.element_ty), mask=kept)

"""One line of planes at a time: to frequencies, filtered, and back; ``kernels`` has the planes.

Matrices and what belongs to a line stay with a program while sequences pass. In half types the
tiles are [columns, NBP] (``COLUMNS_FIRST``), so that frequencies enter the way back from registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels_complex import turn


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
    COLUMNS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One line of PER sequences: ``planes`` of the output's gradient to those of the input's.

    Sums over these sequences are stored for W, [parts, KEPT, D, 2], and the bias, [parts, D]. The
    imaginary part of W's mode 0 has no gradient: that of the bias is summed in its place.
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
    mean = (row == 0) & (line == 0)
    dtype = planes.dtype.element_ty
    at = row * W + c
    if COLUMNS_FIRST:
        m_re, m_im = load_digit(digit_re, digit_im, NBP)
    sum_re = tl.zeros((C, NBP) if COLUMNS_FIRST else (NBP, C), tl.float32)
    sum_im = tl.zeros_like(sum_re)
    for b in range(share * PER, tl.minimum(share * PER + PER, B)):
        if not COLUMNS_FIRST:
            m_re, m_im = load_digit(digit_re, digit_im, NBP)
        offset = (tl.cast(b, tl.int64) * LINES + line) * NB * W
        t_re, t_im = load_line(x_planes + offset, part, row, c, D, W, NB)
        u_re, u_im = load_line(planes + offset, part, row, c, D, W, NB)
        x_re, x_im = _transform(m_re, m_im, -m_im, t_re, t_im, COLUMNS_FIRST, PRECISION)
        g_re, g_im = _transform(m_re, m_im, -m_im, u_re, u_im, COLUMNS_FIRST, PRECISION)
        sum_re += x_re * g_re + x_im * g_im
        sum_im += tl.where(mean, g_re, x_re * g_im - x_im * g_re)
        g_re, g_im = turn(g_re, g_im, w_re, -w_im)
        g_re = g_re.to(dtype)
        g_im = g_im.to(dtype)
        u_re, u_im = _transform(m_re, -m_im, m_im, g_re, g_im, COLUMNS_FIRST, PRECISION)
        u_re, u_im = turn(u_re, u_im, v_re, -v_im)
        tl.store(planes + offset + at, u_re.to(dtype), mask=kept)
        tl.store(planes + offset + part + at, u_im.to(dtype), mask=kept)

    if COLUMNS_FIRST:
        sum_re = tl.trans(sum_re)
        sum_im = tl.trans(sum_im)
    c = first + tl.arange(0, C)[None, :]
    mode = tl.minimum(k, N - k)
    own = (k == 0) | (2 * k == N)
    scale = tl.where(own, 1.0, 2.0) * weight_scale
    if UNITARY:
        scale = tl.where(own, 0.0, scale)
    # Planes 0 and H hold each frequency and its mirror image, the others one of them.
    once = (tl.arange(0, NBP)[:, None] < NB) & (c < D) & (mode < KEPT)
    once = once & ((2 * k <= N) | (2 * k % N1 != 0))
    to = grad_weight + ((share.to(tl.int64) * KEPT + mode) * D + c) * 2
    tl.store(to, scale * sum_re, mask=once)
    to_bias = grad_bias + share * D + c + 0 * k
    tl.store(to_bias, bias_scale * sum_im, mask=(k == 0) & (c < D))
    sum_im = tl.where(own, 0.0, tl.where(2 * k > N, -sum_im, sum_im))
    tl.store(to + 1, scale * sum_im, mask=once)

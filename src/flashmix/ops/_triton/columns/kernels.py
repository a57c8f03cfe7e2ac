"""Transforms along tokens of real columns; ``plan`` says how the digits are named.

Planes are [2, B, H + 1, N2, W]: real and imaginary parts, ``part`` elements apart, in rows of W
elements of which D are columns. A line is the NB rows of one plane k1 and, in three digits, one ka.

1. ``planes_kernel``: the n1 of a real signal to the planes k1.
2. ``stage_kernel``, in place, in three digits only: na to ka.
3. One line at a time: nb to kb, so that each row is a frequency k = k1 + N1 * (ka + NA * kb); what
   is done there, and the way back (``kernels_lines``), or an output.
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
    PAIRS,
    OWN,
    N1: tl.constexpr,
    N1P: tl.constexpr,
    HP: tl.constexpr,
    C: tl.constexpr,
    FOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows n2, n2 + N2, ... of PER sequences, zero from LENGTH on, to row n2 of their planes.

    With ``FOLD`` what is transformed is x[n, c] + x[-n, c + PAIRS]; where OWN, the columns 0 and
    PAIRS have themselves in the other's place.
    """
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
    if FOLD:
        back = x + tl.where(n == 0, 0, N1 * N2 - n) * stride_n
        alone = n1 < tl.where(OWN > 0, N1, 0)
    x += n * stride_n + c * stride_d
    for b in range(share * PER, tl.minimum(share * PER + PER, B)):
        if not KEEP:
            m_re = tl.load(analysis_re + entry)
            m_im = tl.load(analysis_im + entry)
        rows = tl.load(x + tl.cast(b, tl.int64) * stride_b, mask=kept, other=0.0).to(dtype)
        if FOLD:
            at_b = back + tl.cast(b, tl.int64) * stride_b
            twins = tl.load(at_b + PAIRS + c, mask=kept & (c < PAIRS), other=0.0).to(tl.float32)
            zeroth = tl.load(at_b, mask=alone, other=0.0).to(tl.float32)
            middle = tl.load(at_b + PAIRS, mask=alone, other=0.0).to(tl.float32)
            twins = tl.where(alone & (c == 0), zeroth, twins)
            twins = tl.where(alone & (c == PAIRS), middle, twins)
            rows = (rows.to(tl.float32) + twins).to(dtype)
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

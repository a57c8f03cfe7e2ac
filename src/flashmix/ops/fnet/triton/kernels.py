"""The two passes of the FNet kernels; ``plan`` says how the digits are named.

Y depends on x only through its even part, (x[n, d] + x[-n, -d]) / 2, whose transform is real. The
head pass reads x once: for one n2 it folds the rows n2 and -n2 (mod N2) together, transforms n1
(real to complex) and the whole width, and stores the planes k1. Folded rows n2 and N2 - n2 are
mirror images, so n2 <= N2 / 2 are enough and the planes hold half as many bytes as x. The tail
pass reads them once: for one k1 and some columns it sums over n2, keeps the real part, and stores
it and its mirror image, Y[-k, -j] = Y[k, j].

Shapes: H = N1 / 2 planes; R = N2 // 2 + 1 folded rows; C columns of a tile. The planes are
[B, H, R, D], one tensor for the real and one for the imaginary parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels_complex import digit_last, product, real_product, turn


@triton.jit
def _columns(z, ROWS: tl.constexpr, J: tl.constexpr, D2P: tl.constexpr):
    """[ROWS * J, D2P] as [D2P, ROWS, J]: neighbouring columns last, then first."""
    return tl.permute(tl.reshape(z, (ROWS, J, D2P)), (2, 0, 1))


@triton.jit
def head_kernel(
    x,
    planes_re,
    planes_im,
    head,
    width_1_re,
    width_1_im,
    twiddle_re,
    twiddle_im,
    width_2_re,
    width_2_im,
    stride_b,
    stride_n,
    stride_d,
    N2,
    N1: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    N1P: tl.constexpr,
    HP: tl.constexpr,
    D1P: tl.constexpr,
    D2P: tl.constexpr,
    J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows n2 and -n2 (mod N2) of one sequence to the planes [H, D] at n2."""
    R = N2 // 2 + 1
    n2 = tl.program_id(0) % R
    b = (tl.program_id(0) // R).to(tl.int64)
    H: tl.constexpr = N1 // 2
    D: tl.constexpr = D1 * D2
    dtype = x.dtype.element_ty
    x += b * stride_b

    n = tl.arange(0, N1P)[:, None] * N2 + n2
    column = tl.arange(0, D1P * D2P)[None, :]
    d1, d2 = column // D2P, column % D2P
    d = d1 * D2 + d2
    kept = (n < N1 * N2) & (d1 < D1) & (d2 < D2)
    rows = tl.load(x + n * stride_n + d * stride_d, mask=kept, other=0.0)
    n_t = tl.trans(n)
    d_t = tl.trans(d)
    mirror_n = tl.where(n_t == 0, 0, N1 * N2 - n_t)
    mirror_d = tl.where(d_t == 0, 0, D - d_t)
    # Addresses descend along the row, and among axes without ascending runs Triton lets threads
    # follow the first: columns come first here, so that a warp reads neighbours.
    mirror = tl.load(x + mirror_n * stride_n + mirror_d * stride_d, mask=tl.trans(kept), other=0.0)

    # The mirror image is added by the matrix product, which rounds nothing.
    stacked = tl.arange(0, 2 * HP)[:, None] * N1P + tl.arange(0, N1P)[None, :]
    p = tl.load(head + stacked)
    s = tl.dot(p, rows, input_precision=PRECISION)
    s = tl.dot(p, tl.trans(mirror), s, input_precision=PRECISION)
    # Rows that are their own mirror image would count twice in the tail's sum.
    s *= tl.where((n2 == 0) | (2 * n2 == N2), 0.5, 1.0)
    s = tl.reshape(s.to(dtype), (2, HP, D1P * D2P))
    re, im = tl.split(tl.permute(s, (1, 2, 0)))
    re = digit_last(re, HP, D1P, D2P)
    im = digit_last(im, HP, D1P, D2P)

    square_2 = tl.arange(0, D2P)[:, None] * D2P + tl.arange(0, D2P)[None, :]
    w2_re = tl.load(width_2_re + square_2)
    w2_im = tl.load(width_2_im + square_2)
    k1 = tl.arange(0, HP)[None, :, None]
    j1 = tl.arange(0, J)[None, None, :]
    j2 = tl.arange(0, D2P)[:, None, None]
    to = ((b * H + k1) * R + n2) * D + j1 + D1 * j2
    for first in range(0, D1, J):
        block = first + tl.arange(0, J)[None, :]
        block_1 = tl.arange(0, D1P)[:, None] * D1P + block
        u_re, u_im = product(
            re, im, tl.load(width_1_re + block_1), tl.load(width_1_im + block_1), PRECISION
        )
        twiddle = tl.arange(0, D2P)[:, None] * D1P + block
        u_re, u_im = turn(
            tl.reshape(u_re, (HP, D2P, J)),
            tl.reshape(u_im, (HP, D2P, J)),
            tl.load(twiddle_re + twiddle)[None, :, :],
            tl.load(twiddle_im + twiddle)[None, :, :],
        )
        z_re, z_im = product(
            digit_last(u_re.to(dtype), HP, D2P, J),
            digit_last(u_im.to(dtype), HP, D2P, J),
            w2_re,
            w2_im,
            PRECISION,
        )
        z_kept = (k1 < H) & (first + j1 < D1) & (j2 < D2)
        tl.store(planes_re + to + first, _columns(z_re.to(dtype), HP, J, D2P), mask=z_kept)
        tl.store(planes_im + to + first, _columns(z_im.to(dtype), HP, J, D2P), mask=z_kept)


@triton.jit
def _load_rows(planes_re, planes_im, row, row_kept, c, D, C: tl.constexpr):
    """Columns c to c + C of the rows at offsets ``row`` [Q]: two tiles [Q, C]."""
    j = c + tl.arange(0, C)[None, :]
    at = row[:, None] + j
    kept = row_kept[:, None] & (j < D)
    re = tl.load(planes_re + at, mask=kept, other=0.0)
    im = tl.load(planes_im + at, mask=kept, other=0.0)
    return re, im


@triton.jit
def _mirrored(row, row_kept, c, D, C: tl.constexpr):
    """Offsets and mask of the columns -j (mod D), for j = c to c + C, as [C, Q].

    Columns come first for the reason given in ``head_kernel``.
    """
    j = c + tl.arange(0, C)[:, None]
    back = tl.where(j == 0, 0, D - j)
    return row[None, :] + back, row_kept[None, :] & (j < D)


@triton.jit
def _load_shared(planes_re, planes_im, row, row_kept, c, D, PLANE: tl.constexpr, C: tl.constexpr):
    """As ``_load_rows`` for plane 0 (``PLANE`` = 0) or H (1), from Z0 + i ZH, which they share.

    Both stem from real rows, so Z[-j] = conj Z[j] for each of them.
    """
    re, im = _load_rows(planes_re, planes_im, row, row_kept, c, D, C)
    at, kept = _mirrored(row, row_kept, c, D, C)
    back_re = tl.trans(tl.load(planes_re + at, mask=kept, other=0.0)).to(tl.float32)
    back_im = tl.trans(tl.load(planes_im + at, mask=kept, other=0.0)).to(tl.float32)
    if PLANE == 0:
        own_re, own_im = re + back_re, im - back_im
    else:
        own_re, own_im = im + back_im, back_re - re
    return (0.5 * own_re).to(re.dtype), (0.5 * own_im).to(im.dtype)


@triton.jit
def _store_rows(y, out, row, row_kept, c, D, C: tl.constexpr):
    """``out`` [Q, C] to the columns c to c + C of the rows at offsets ``row`` [Q]."""
    j = c + tl.arange(0, C)[None, :]
    tl.store(y + row[:, None] + j, out, mask=row_kept[:, None] & (j < D))


@triton.jit
def _store_mirrored(y, out, row, row_kept, c, D, C: tl.constexpr):
    """``out`` [Q, C], columns c to c + C, to the columns -j (mod D)."""
    at, kept = _mirrored(row, row_kept, c, D, C)
    tl.store(y + at, tl.trans(out), mask=kept)


@triton.jit
def _middle_row(t_re, t_im, k1, middle_re, middle_im, k2):
    """What the folded row N2 / 2, [1, C], adds to the rows ``k2`` [Q]."""
    sign = (1.0 - 2.0 * (k2 % 2))[:, None]
    w_re = tl.load(middle_re + k1)
    w_im = tl.load(middle_im + k1)
    return sign * (w_re * t_re.to(tl.float32) - w_im * t_im.to(tl.float32))


@triton.jit
def tail_kernel(
    planes_re,
    planes_im,
    y,
    tail_re,
    tail_im,
    middle_re,
    middle_im,
    scale,
    D,
    N1: tl.constexpr,
    N2: tl.constexpr,
    N2P: tl.constexpr,
    KP: tl.constexpr,
    C: tl.constexpr,
    SHARED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Plane k1 of one sequence, columns c to c + C, to rows k1 + N1 * k2 and their mirror image.

    ``SHARED`` makes another kernel, which does the planes 0 and H instead of all others.
    """
    H: tl.constexpr = N1 // 2
    R: tl.constexpr = N2 // 2 + 1
    K: tl.constexpr = (N2 + 1) // 2
    c = tl.program_id(0) * C
    k1 = 0 if SHARED else 1 + tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    dtype = y.dtype.element_ty
    planes_re += (b * H + k1) * R * D
    planes_im += (b * H + k1) * R * D
    y += b * N1 * N2 * D

    n2 = tl.arange(0, KP)
    k2 = tl.arange(0, N2P)
    end = tl.full((1,), K * D, tl.int32)
    for PLANE in tl.static_range(2 if SHARED else 1):
        if SHARED:
            plane = PLANE * H
            t_re, t_im = _load_shared(planes_re, planes_im, n2 * D, n2 < K, c, D, PLANE, C)
        else:
            plane = k1
            t_re, t_im = _load_rows(planes_re, planes_im, n2 * D, n2 < K, c, D, C)
        entry = plane * N2P * KP + k2[:, None] * KP + n2[None, :]
        w_re = tl.load(tail_re + entry)
        w_im = tl.load(tail_im + entry)
        out = real_product(w_re, w_im, t_re, t_im, PRECISION)
        if N2 % 2 == 0:
            if SHARED:
                m_re, m_im = _load_shared(planes_re, planes_im, end, end > 0, c, D, PLANE, C)
            else:
                m_re, m_im = _load_rows(planes_re, planes_im, end, end > 0, c, D, C)
            out += _middle_row(m_re, m_im, plane, middle_re, middle_im, k2)
        narrow = (out * scale).to(dtype)
        _store_rows(y, narrow, (plane + N1 * k2) * D, k2 < N2, c, D, C)
        if not SHARED:
            _store_mirrored(y, narrow, (N1 - k1 + N1 * (N2 - 1 - k2)) * D, k2 < N2, c, D, C)


@triton.jit
def _long_sum(
    t_re,
    t_im,
    k1,
    tail_a_re,
    tail_a_im,
    twiddle_re,
    twiddle_im,
    tail_b_re,
    tail_b_im,
    NAP: tl.constexpr,
    KP: tl.constexpr,
    NBP: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum over the rows (na, nb) of plane k1, [KP * NBP, C], to [NBP * NAP, C], rows (kb, ka)."""
    at = k1 * NAP * KP + tl.arange(0, NAP)[:, None] * KP + tl.arange(0, KP)[None, :]
    re, im = product(
        tl.load(tail_a_re + at),
        tl.load(tail_a_im + at),
        tl.reshape(t_re, (KP, NBP * C)),
        tl.reshape(t_im, (KP, NBP * C)),
        PRECISION,
    )
    twiddle = k1 * NAP * NBP + tl.arange(0, NAP)[:, None] * NBP + tl.arange(0, NBP)[None, :]
    re, im = turn(
        tl.reshape(re, (NAP, NBP, C)),
        tl.reshape(im, (NAP, NBP, C)),
        tl.load(twiddle_re + twiddle)[:, :, None],
        tl.load(twiddle_im + twiddle)[:, :, None],
    )
    square = tl.arange(0, NBP)[:, None] * NBP + tl.arange(0, NBP)[None, :]
    out = real_product(
        tl.load(tail_b_re + square),
        tl.load(tail_b_im + square),
        tl.reshape(tl.permute(re.to(t_re.dtype), (1, 0, 2)), (NBP, NAP * C)),
        tl.reshape(tl.permute(im.to(t_re.dtype), (1, 0, 2)), (NBP, NAP * C)),
        PRECISION,
    )
    return tl.reshape(out, (NBP * NAP, C))


@triton.jit
def long_tail_kernel(
    planes_re,
    planes_im,
    y,
    tail_a_re,
    tail_a_im,
    twiddle_re,
    twiddle_im,
    tail_b_re,
    tail_b_im,
    middle_re,
    middle_im,
    scale,
    D,
    N1: tl.constexpr,
    NA: tl.constexpr,
    NB: tl.constexpr,
    NAP: tl.constexpr,
    KP: tl.constexpr,
    NBP: tl.constexpr,
    C: tl.constexpr,
    SHARED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As ``tail_kernel``, with n2 < N2 / 2 summed in its two digits; NA is even."""
    H: tl.constexpr = N1 // 2
    N2: tl.constexpr = NA * NB
    R: tl.constexpr = N2 // 2 + 1
    c = tl.program_id(0) * C
    k1 = 0 if SHARED else 1 + tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    dtype = y.dtype.element_ty
    y += b * N1 * N2 * D
    planes_re += (b * H + k1) * R * D
    planes_im += (b * H + k1) * R * D

    na = tl.arange(0, KP * NBP) // NBP
    nb = tl.arange(0, KP * NBP) % NBP
    n2 = na * NB + nb
    n2_kept = (na < NA // 2) & (nb < NB)
    ka = tl.arange(0, NBP * NAP) % NAP
    kb = tl.arange(0, NBP * NAP) // NAP
    k2 = ka + NA * kb
    k2_kept = (ka < NA) & (kb < NB)
    end = tl.full((1,), (R - 1) * D, tl.int32)
    for PLANE in tl.static_range(2 if SHARED else 1):
        if SHARED:
            plane = PLANE * H
            t_re, t_im = _load_shared(planes_re, planes_im, n2 * D, n2_kept, c, D, PLANE, C)
            m_re, m_im = _load_shared(planes_re, planes_im, end, end > 0, c, D, PLANE, C)
        else:
            plane = k1
            t_re, t_im = _load_rows(planes_re, planes_im, n2 * D, n2_kept, c, D, C)
            m_re, m_im = _load_rows(planes_re, planes_im, end, end > 0, c, D, C)
        out = _long_sum(
            t_re,
            t_im,
            plane,
            tail_a_re,
            tail_a_im,
            twiddle_re,
            twiddle_im,
            tail_b_re,
            tail_b_im,
            NAP,
            KP,
            NBP,
            C,
            PRECISION,
        )
        out += _middle_row(m_re, m_im, plane, middle_re, middle_im, k2)
        narrow = (out * scale).to(dtype)
        _store_rows(y, narrow, (plane + N1 * k2) * D, k2_kept, c, D, C)
        if not SHARED:
            mirror = (N1 - k1 + N1 * (N2 - 1 - k2)) * D
            _store_mirrored(y, narrow, mirror, k2_kept, c, D, C)

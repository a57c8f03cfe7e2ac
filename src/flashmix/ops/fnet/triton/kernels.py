"""The two passes of the FNet kernels; ``plan`` says how the digits are named.

Y depends on x only through its even part, (x[n, d] + x[-n, -d]) / 2, whose transform is real. The
head pass reads x once: for one n2 it folds the rows n2 and -n2 (mod N2) together, transforms n1
(real to complex) and the whole width, and stores the planes k1. Folded rows n2 and N2 - n2 are
mirror images, so n2 <= N2 / 2 are enough and the planes hold half as many bytes as x. The tail
pass reads them once: for one k1, some columns and some pairs k2 it sums over n2, keeps the real
part, and stores it and its mirror image, Y[-k, -j] = Y[k, j].

Shapes: H = N1 / 2 planes; R = N2 // 2 + 1 folded rows; C columns of a tile. The planes are
[B, H, R, D], one tensor for the real and one for the imaginary parts.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashmix.ops._triton.kernels_complex import digit_last, product, turn


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
    PDL: tl.constexpr,
):
    """Rows n2 and -n2 (mod N2) of one sequence to the planes [H, D] at n2, turned as they need."""
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

    if PDL:
        gdc_launch_dependents()
    # The mirror image is added by the matrix product, which rounds nothing.
    stacked = tl.arange(0, 2 * HP)[:, None] * N1P + tl.arange(0, N1P)[None, :]
    p = tl.load(head + n2 * (2 * HP * N1P) + stacked)
    s = tl.dot(p, rows, input_precision=PRECISION)
    s = tl.dot(p, tl.trans(mirror), s, input_precision=PRECISION)
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
def _rows(row, row_kept, c, D: tl.constexpr, C: tl.constexpr, FULL: tl.constexpr):
    """Offsets and mask of the columns c to c + C of the rows at offsets ``row`` [Q], as [Q, C].

    ``FULL`` says that all are inside.
    """
    j = c + tl.arange(0, C)[None, :]
    kept = row_kept[:, None] & (j < D)
    if FULL:
        kept = tl.full(kept.shape, True, tl.int1)
    return row[:, None] + j, kept


@triton.jit
def _mirrored(row, row_kept, c, D: tl.constexpr, C: tl.constexpr, FULL: tl.constexpr):
    """As ``_rows`` of the columns -j (mod D), for j = c to c + C, as [C, Q].

    Columns come first for the reason given in ``head_kernel``.
    """
    j = c + tl.arange(0, C)[:, None]
    back = tl.where(j == 0, 0, D - j)
    kept = row_kept[None, :] & (j < D)
    if FULL:
        kept = tl.full(kept.shape, True, tl.int1)
    return row[None, :] + back, kept


@triton.jit
def _load_rows(plane, row, row_kept, c, D: tl.constexpr, C: tl.constexpr, FULL: tl.constexpr):
    """A tile [Q, C] of the columns c to c + C."""
    at, kept = _rows(row, row_kept, c, D, C, FULL)
    return tl.load(plane + at, mask=kept, other=0.0)


@triton.jit
def _load_mirrored(plane, row, row_kept, c, D: tl.constexpr, C: tl.constexpr, FULL: tl.constexpr):
    """A tile [Q, C] of the columns -j (mod D), for j = c to c + C."""
    at, kept = _mirrored(row, row_kept, c, D, C, FULL)
    return tl.trans(tl.load(plane + at, mask=kept, other=0.0))


@triton.jit
def _shared_planes(
    planes_re,
    planes_im,
    y,
    cosines,
    sines,
    gain,
    scale,
    c,
    block,
    first,
    D: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    KP: tl.constexpr,
    Q: tl.constexpr,
    STEP: tl.constexpr,
    C: tl.constexpr,
    FULL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """2 Q rows k2 of plane 0 (``first``) or H, columns c to c + C; neither needs a mirror image.

    They share Z = Z0 + i ZH, and both stem from real rows, so Z[-j] = conj Z[j] for each of them:
    2 Z0 = Z + conj Z[-j] and 2 ZH = -i (Z - conj Z[-j]). The products add these up.
    """
    K: tl.constexpr = (N2 + 1) // 2
    even = tl.where(first, planes_re, planes_im)
    odd = tl.where(first, planes_im, planes_re)
    k2 = block * (2 * Q) + tl.arange(0, 2 * Q)
    out = tl.zeros((2 * Q, C), tl.float32)
    for start in tl.range(0, K, STEP, num_stages=1):
        n2 = start + tl.arange(0, STEP)
        entry = k2[:, None] * KP + n2[None, :]
        w = tl.load(cosines + entry)
        out = tl.dot(
            w, _load_rows(even, n2 * D, n2 < K, c, D, C, FULL), out, input_precision=PRECISION
        )
        back = _load_mirrored(even, n2 * D, n2 < K, c, D, C, FULL)
        out = tl.dot(w, back, out, input_precision=PRECISION)
        w = tl.load(sines + entry)
        out = tl.dot(
            w, _load_rows(odd, n2 * D, n2 < K, c, D, C, FULL), out, input_precision=PRECISION
        )
        back = _load_mirrored(odd, n2 * D, n2 < K, c, D, C, FULL)
        out = tl.dot(w, -back, out, input_precision=PRECISION)
    if N2 % 2 == 0:
        # Row N2 / 2 would pad the products to twice their size; its phases are +-1 or +-i.
        end = tl.full((1,), K * D, tl.int32)
        t = _load_rows(planes_re, end, end > 0, c, D, C, FULL).to(tl.float32)
        t = _load_mirrored(planes_re, end, end > 0, c, D, C, FULL) + tl.where(first, t, -t)
        out += (1.0 - 2.0 * (k2 % 2))[:, None] * gain * t
    k = tl.where(first, 0, N1 // 2) + N1 * k2
    at, kept = _rows(k * D, k2 < N2, c, D, C, FULL)
    tl.store(y + at, (out * scale).to(y.dtype.element_ty), mask=kept)


@triton.jit
def _paired_planes(
    planes_re,
    planes_im,
    y,
    cosines,
    sines,
    scale,
    c,
    block,
    k1,
    D: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    KP: tl.constexpr,
    Q: tl.constexpr,
    STEP: tl.constexpr,
    C: tl.constexpr,
    FULL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Q pairs of rows k2 and N2 - 1 - k2, columns c to c + C, of the planes k1 and N1 - k1."""
    K: tl.constexpr = (N2 + 1) // 2
    dtype = y.dtype.element_ty
    k2 = block * Q + tl.arange(0, Q)
    even = tl.zeros((Q, C), tl.float32)
    odd = tl.zeros((Q, C), tl.float32)
    for start in range(0, K, STEP):
        n2 = start + tl.arange(0, STEP)
        entry = k2[:, None] * KP + n2[None, :]
        t_re = _load_rows(planes_re, n2 * D, n2 < K, c, D, C, FULL)
        # Sines begin with row 1.
        t_im = _load_rows(planes_im + D, n2 * D, n2 < N2 // 2, c, D, C, FULL)
        even = tl.dot(tl.load(cosines + entry), t_re, even, input_precision=PRECISION)
        odd = tl.dot(tl.load(sines + entry), t_im, odd, input_precision=PRECISION)
    near = ((even + odd) * scale).to(dtype)
    far = ((even - odd) * scale).to(dtype)
    low = k2 * (N1 * D)
    high = (N2 - 1 - k2) * (N1 * D)
    at, kept = _rows(k1 * D + low, k2 < K, c, D, C, FULL)
    tl.store(y + at, near, mask=kept)
    at, kept = _mirrored((N1 - k1) * D + high, k2 < K, c, D, C, FULL)
    tl.store(y + at, tl.trans(near), mask=kept)
    at, kept = _rows(k1 * D + high, k2 < N2 // 2, c, D, C, FULL)
    tl.store(y + at, far, mask=kept)
    at, kept = _mirrored((N1 - k1) * D + low, k2 < N2 // 2, c, D, C, FULL)
    tl.store(y + at, tl.trans(far), mask=kept)


@triton.jit
def tail_kernel(
    planes_re,
    planes_im,
    y,
    pairs_re,
    pairs_im,
    shared_re,
    shared_im,
    shared_gain,
    pairs_scale,
    shared_scale,
    COLUMNS,
    D: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    KP: tl.constexpr,
    Q: tl.constexpr,
    STEP: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Plane k1 of one sequence, columns c to c + C, Q pairs k2; STEP rows n2 at a time."""
    H: tl.constexpr = N1 // 2
    R: tl.constexpr = N2 // 2 + 1
    FULL: tl.constexpr = D % C == 0 and N2 == 2 * KP
    c = (tl.program_id(0) % COLUMNS) * C
    block = tl.program_id(0) // COLUMNS
    k1 = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    y += b * N1 * N2 * D
    plane = (b * H + k1 % H) * R * D
    planes_re += plane
    planes_im += plane
    if PDL:
        gdc_wait()
    if k1 % H == 0:
        side = (k1 // H) * (2 * KP * KP)
        _shared_planes(
            planes_re,
            planes_im,
            y,
            shared_re + side,
            shared_im + side,
            shared_gain,
            shared_scale,
            c,
            block,
            k1 == 0,
            D,
            N1,
            N2,
            KP,
            Q,
            STEP,
            C,
            FULL,
            PRECISION,
        )
    else:
        _paired_planes(
            planes_re,
            planes_im,
            y,
            pairs_re,
            pairs_im,
            pairs_scale,
            c,
            block,
            k1,
            D,
            N1,
            N2,
            KP,
            Q,
            STEP,
            C,
            FULL,
            PRECISION,
        )

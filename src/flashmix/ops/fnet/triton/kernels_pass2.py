"""The second of two passes of FNet mixing, its tail; ``plan`` says how the digits are named.

It reads the planes of ``kernels_pass1`` once: for one k1, some columns and some pairs k2 it sums
over n2, keeps the real part, and stores it and its mirror image, Y[-k, -j] = Y[k, j].

Shapes: H = N1 / 2 planes; R = N2 // 2 + 1 folded rows; C columns of a tile and Q pairs of rows. The
planes are [B, H, R, D], one tensor for the real and one for the imaginary parts.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait


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
def _load_reversed(
    plane, row, row_kept, c, D: tl.constexpr, C: tl.constexpr, VECTORS: tl.constexpr
):
    """A tile [Q, C] of the columns -j (mod D), for j = c to c + C, zero beyond D.

    With ``VECTORS``, for D a multiple of 8, eight at a time, D - j - 7 to D - j: all but the last
    are in one aligned vector and the last begins the next, so both are read as such and turned
    round in registers.
    """
    if not VECTORS:
        # Columns come first for the reason given in ``_store_mirrored``.
        j = c + tl.arange(0, C)[:, None]
        back = tl.where(j == 0, 0, D - j)
        kept = row_kept[None, :] & (j < D)
        return tl.trans(tl.load(plane + row[None, :] + back, mask=kept, other=0.0))
    j = c + tl.arange(0, C)[None, :] // 8 * 8
    place = tl.arange(0, C)[None, :] % 8
    kept = row_kept[:, None] & (j < D)
    plane += row[:, None] + place
    a = tl.load(plane + (D - 8 - j), mask=kept, other=0.0)
    z = tl.load(plane + tl.where(j == 0, 0, D - j), mask=kept, other=0.0)
    return reverse_columns(a, z, row.shape[0], C)


@triton.jit
def reverse_columns(a, z, Q: tl.constexpr, C: tl.constexpr):
    """Of each eight columns of tiles [Q, C]: the first of z, then those of a, last to second."""
    z, _ = tl.split(tl.reshape(z, (Q, C // 8, 4, 2)))
    z, _ = tl.split(tl.reshape(z, (Q, C // 8, 2, 2)))
    z, _ = tl.split(z)
    even, odd = tl.split(tl.reshape(a, (Q, C // 8, 4, 2)))
    a04, a26 = tl.split(tl.reshape(even, (Q, C // 8, 2, 2)))
    a15, a37 = tl.split(tl.reshape(odd, (Q, C // 8, 2, 2)))
    _, a4 = tl.split(a04)
    a2, a6 = tl.split(a26)
    a1, a5 = tl.split(a15)
    a3, a7 = tl.split(a37)
    even = tl.join(tl.join(z, a4), tl.join(a6, a2))
    odd = tl.join(tl.join(a7, a3), tl.join(a5, a1))
    return tl.reshape(tl.join(even, odd), (Q, C))


@triton.jit
def _store_mirrored(
    y, tile, row, row_kept, c, D: tl.constexpr, C: tl.constexpr, FULL: tl.constexpr
):
    """Store a tile [Q, C], the columns c to c + C, at the columns -j (mod D) of the rows ``row``.

    Addresses descend along the row, and among axes without ascending runs Triton lets threads
    follow the first: columns come first here, so that a warp writes neighbours.
    """
    j = c + tl.arange(0, C)[:, None]
    kept = row_kept[None, :] & (j < D)
    if FULL:
        kept = tl.full(kept.shape, True, tl.int1)
    tl.store(y + row[None, :] + tl.where(j == 0, 0, D - j), tl.trans(tile), mask=kept)


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
    """Q pairs of rows of plane 0 (``first``) or H, columns c to c + C; no mirror image is needed.

    They share Z = Z0 + i ZH, and both stem from real rows, so Z[-j] = conj Z[j] for each of them:
    2 Z0 = Z + conj Z[-j] and 2 ZH = -i (Z - conj Z[-j]). The products add these up. Plane H pairs
    off as the others do; plane 0 pairs k2 with N2 - k2, which leaves row 0, a mere sum.
    """
    K: tl.constexpr = (N2 + 1) // 2
    # Narrower vectors ended in shared memory that was not theirs (Triton 3.6, one step, 64 bytes).
    VECTORS: tl.constexpr = D % 8 == 0 and C * y.dtype.element_ty.primitive_bitwidth >= 1024
    even_plane = tl.where(first, planes_re, planes_im)
    odd_plane = tl.where(first, planes_im, planes_re) + D
    row = block * Q + tl.arange(0, Q)
    even = tl.zeros((Q, C), tl.float32)
    odd = tl.zeros((Q, C), tl.float32)
    column = tl.zeros((STEP, C), tl.float32)
    for start in range(0, K, STEP):
        n2 = start + tl.arange(0, STEP)
        entry = row[:, None] * KP + n2[None, :]
        w_even = tl.load(cosines + entry)
        w_odd = tl.load(sines + entry)
        at, kept = _rows(n2 * D, n2 < K, c, D, C, FULL)
        a = tl.load(even_plane + at, mask=kept, other=0.0)
        a_back = _load_reversed(even_plane, n2 * D, n2 < K, c, D, C, VECTORS)
        at, kept = _rows(n2 * D, n2 < N2 // 2, c, D, C, FULL)
        b = tl.load(odd_plane + at, mask=kept, other=0.0)
        b_back = _load_reversed(odd_plane, n2 * D, n2 < N2 // 2, c, D, C, VECTORS)
        column += a.to(tl.float32) + a_back.to(tl.float32)
        even = tl.dot(w_even, a, even, input_precision=PRECISION)
        even = tl.dot(w_even, a_back, even, input_precision=PRECISION)
        odd = tl.dot(w_odd, b, odd, input_precision=PRECISION)
        odd = tl.dot(w_odd, -b_back, odd, input_precision=PRECISION)
    zeroth = tl.sum(column, 0)[None, :]
    near_k2 = tl.where(first, row + 1, row)
    far_k2 = N2 - 1 - row
    if N2 % 2 == 0 and first:
        # Row N2 / 2, whose phases are +-1, would pad the products to twice their size.
        end = tl.full((1,), K * D, tl.int32)
        end_at, inside = _rows(end, end > 0, c, D, C, FULL)
        t = tl.load(planes_re + end_at, mask=inside, other=0.0).to(tl.float32)
        t += _load_reversed(planes_re, end, end > 0, c, D, C, VECTORS)
        zeroth += t
        even += (1.0 - 2.0 * (near_k2 % 2))[:, None] * gain * t
    odd = tl.where(first, odd, -odd)
    y += tl.where(first, 0, N1 // 2 * D)
    at, kept = _rows(near_k2 * (N1 * D), near_k2 <= far_k2, c, D, C, False)
    tl.store(y + at, ((even + odd) * scale).to(y.dtype.element_ty), mask=kept)
    at, kept = _rows(far_k2 * (N1 * D), near_k2 < far_k2, c, D, C, False)
    tl.store(y + at, ((even - odd) * scale).to(y.dtype.element_ty), mask=kept)
    if first and block == 0:
        top = tl.arange(0, 1)
        top_at, inside = _rows(top, top == 0, c, D, C, FULL)
        tl.store(y + top_at, (zeroth * gain * scale).to(y.dtype.element_ty), mask=inside)


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
        at, kept = _rows(n2 * D, n2 < K, c, D, C, FULL)
        t_re = tl.load(planes_re + at, mask=kept, other=0.0)
        # Sines begin with row 1.
        at, kept = _rows(n2 * D, n2 < N2 // 2, c, D, C, FULL)
        t_im = tl.load(planes_im + D + at, mask=kept, other=0.0)
        even = tl.dot(tl.load(cosines + entry), t_re, even, input_precision=PRECISION)
        odd = tl.dot(tl.load(sines + entry), t_im, odd, input_precision=PRECISION)
    near = ((even + odd) * scale).to(dtype)
    far = ((even - odd) * scale).to(dtype)
    low = k2 * (N1 * D)
    high = (N2 - 1 - k2) * (N1 * D)
    at, kept = _rows(k1 * D + low, k2 < K, c, D, C, FULL)
    tl.store(y + at, near, mask=kept)
    _store_mirrored(y + (N1 - k1) * D, near, high, k2 < K, c, D, C, FULL)
    at, kept = _rows(k1 * D + high, k2 < N2 // 2, c, D, C, FULL)
    tl.store(y + at, far, mask=kept)
    _store_mirrored(y + (N1 - k1) * D, far, low, k2 < N2 // 2, c, D, C, FULL)


@triton.jit
def tail_kernel(
    planes_re,
    planes_im,
    y,
    cosines,
    sines,
    gain,
    scale,
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
    # The matrices of plane 0 come first, then those of all others.
    side = tl.where(k1 == 0, 0, KP * KP)
    cosines += side
    sines += side
    if PDL:
        gdc_wait()
    if k1 % H == 0:
        _shared_planes(
            planes_re,
            planes_im,
            y,
            cosines,
            sines,
            gain,
            0.5 * scale,
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
            cosines,
            sines,
            scale,
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

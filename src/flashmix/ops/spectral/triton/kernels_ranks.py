"""Few modes of tokens that lie across ranks, in Triton: what stands between two products.

A slice is cut into chunks, which one matrix transforms as if each began the sequence. ``turns``,
float32 [Q, 2, K], are exp(-2 pi i m s / N) for the token s where each chunk begins. They, and modes
[2 K, D], stand real parts above imaginary ones.

Shapes: B batch, N tokens of all ranks, D channels, M learned modes, K modes in use, Q chunks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops.spectral.triton.kernels_modes import factor


@triton.jit(do_not_specialize=["Q"])
def collect_kernel(
    sums,
    turns,
    modes,
    Q,
    K: tl.constexpr,
    D: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Modes of each sequence: its chunks' sums [Q, 2 K, D], turned and added up."""
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    b = tl.program_id(2).to(tl.int64)
    plane = K * D
    kept = (m < K) & (d < D)
    to = modes + b * 2 * plane + (m * D + d)
    sums += b * Q * 2 * plane
    if ADD:
        sum_re = tl.load(to, mask=kept, other=0.0)
        sum_im = tl.load(to + plane, mask=kept, other=0.0)
    else:
        sum_re = tl.zeros((ROWS, COLUMNS), tl.float32)
        sum_im = tl.zeros((ROWS, COLUMNS), tl.float32)
    for q in tl.range(0, Q, loop_unroll_factor=4):
        at = q * 2 * plane + (m * D + d)
        re = tl.load(sums + at, mask=kept, other=0.0)
        im = tl.load(sums + at + plane, mask=kept, other=0.0)
        t_re = tl.load(turns + q * 2 * K + m, mask=m < K, other=0.0)
        t_im = tl.load(turns + q * 2 * K + K + m, mask=m < K, other=0.0)
        sum_re += re * t_re - im * t_im
        sum_im += re * t_im + im * t_re
    tl.store(to, sum_re, mask=kept)
    tl.store(to + plane, sum_im, mask=kept)


@triton.jit(do_not_specialize=["scale", "lift", "FIRST", "COUNT", "B", "N", "Q"])
def spread_kernel(
    modes,
    turns,
    turned,
    weight,
    bias,
    spectrum,
    upstream,
    grad_weight,
    grad_bias,
    scale,
    lift,
    FIRST,
    COUNT,
    B,
    N,
    Q,
    M: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    CONJUGATE: tl.constexpr,
    UNITARY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Filtered modes of COUNT sequences from FIRST on, turned back for each chunk [Q, 2 K, D].

    ``lift``, a power of two, multiplies them. Where ``grad_weight`` [M, D, 2] and ``grad_bias`` [D]
    are given, they get the sums over all B sequences: of conj(``spectrum``) ``upstream`` with the
    inverse transform's own factors, and of the lowest mode of ``upstream``.
    """
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    plane = K * D
    kept = (m < K) & (d < D)
    at = m * D + d
    if grad_weight is not None:
        sum_re = tl.zeros((ROWS, COLUMNS), tl.float32)
        sum_im = tl.zeros((ROWS, COLUMNS), tl.float32)
        for b in range(B):
            here = tl.cast(b, tl.int64) * 2 * plane + at
            x_re = tl.load(spectrum + here, mask=kept, other=0.0)
            x_im = tl.load(spectrum + here + plane, mask=kept, other=0.0)
            u_re = tl.load(upstream + here, mask=kept, other=0.0)
            u_im = tl.load(upstream + here + plane, mask=kept, other=0.0)
            sum_re += x_re * u_re + x_im * u_im
            # The imaginary part of W's mode 0 has no gradient: the bias' is summed in its place.
            sum_im += tl.where(m == 0, u_re, x_re * u_im - x_im * u_re)
        own = (m == 0) | (2 * m == N)
        share = tl.where(own, 1.0, 2.0) * scale
        if UNITARY:
            share = tl.where(own, 0.0, share)
        learned = (m < M) & (d < D)
        found_re = (share * sum_re).to(grad_weight.dtype.element_ty)
        found_im = tl.where(own, 0.0, share * sum_im).to(grad_weight.dtype.element_ty)
        tl.store(grad_weight + at * 2, found_re, mask=learned)
        tl.store(grad_weight + at * 2 + 1, found_im, mask=learned)
        if grad_bias is not None:
            lowest = sum_im.to(grad_bias.dtype.element_ty)
            tl.store(grad_bias + d + 0 * m, lowest, mask=kept & (m == 0))

    w_re, w_im = factor(weight, m, d, kept, scale * lift, D, N, CONJUGATE, UNITARY)
    for row in range(COUNT):
        own_modes = modes + tl.cast(FIRST + row, tl.int64) * 2 * plane + at
        re = tl.load(own_modes, mask=kept, other=0.0)
        im = tl.load(own_modes + plane, mask=kept, other=0.0)
        z_re = w_re * re - w_im * im
        z_im = w_re * im + w_im * re
        if bias is not None:
            added = tl.load(bias + d + 0 * m, mask=kept & (m == 0), other=0.0)
            z_re += added.to(tl.float32) * lift
        to = turned + tl.cast(row, tl.int64) * Q * 2 * plane + at
        for q in range(Q):
            t_re = tl.load(turns + q * 2 * K + m, mask=m < K, other=0.0)
            t_im = tl.load(turns + q * 2 * K + K + m, mask=m < K, other=0.0)
            y_re = (z_re * t_re + z_im * t_im).to(turned.dtype.element_ty)
            y_im = (z_im * t_re - z_re * t_im).to(turned.dtype.element_ty)
            tl.store(to, y_re, mask=kept)
            tl.store(to + plane, y_im, mask=kept)
            to += 2 * plane

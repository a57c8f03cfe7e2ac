"""The first of two passes of FNet mixing, its head; ``plan`` says how the digits are named.

Y depends on x only through its even part, (x[n, d] + x[-n, -d]) / 2, whose transform is real. The
head pass reads x once: for one n2 it folds the rows n2 and -n2 (mod N2) together, transforms n1
(real to complex) and the whole width, and stores the planes k1. Folded rows n2 and N2 - n2 are
mirror images, so n2 <= N2 / 2 are enough and the planes hold half as many bytes as x.
``kernels_pass2`` is the other pass.

Shapes: H = N1 / 2 planes; R = N2 // 2 + 1 folded rows. The planes are [B, H, R, D], one tensor for
the real and one for the imaginary parts.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

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

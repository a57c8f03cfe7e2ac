"""What works on modes alone: the filter, and the gradient of W; shapes as in ``kernels``."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def factor(weight, mode, d, kept, scale, D, N, CONJUGATE: tl.constexpr, UNITARY: tl.constexpr):
    """What a mode is multiplied by: W, or W - 1 when unitary (the rest is added later)."""
    own = (mode == 0) | (2 * mode == N)
    at = weight + (mode * D + d) * 2
    re = tl.load(at, mask=kept, other=0.0).to(tl.float32)
    im = tl.where(own, 0.0, tl.load(at + 1, mask=kept, other=0.0).to(tl.float32))
    if UNITARY:
        re = tl.where(own | ~kept, 0.0, re - 1.0)
    if CONJUGATE:
        im = -im
    # Every mode but the self-conjugate ones represents itself and its mirror image.
    share = tl.where(own, 1.0, 2.0) * scale
    return share * re, share * im


@triton.jit
def store_modes(to, re, im, factor_re, factor_im, part, kept):
    dtype = to.dtype.element_ty
    tl.store(to, (factor_re * re - factor_im * im).to(dtype), mask=kept)
    tl.store(to + part, (factor_re * im + factor_im * re).to(dtype), mask=kept)


@triton.jit
def filter_kernel(
    spectrum,
    weight,
    filtered,
    scale,
    D,
    N,
    MP,
    KEPT,
    PARITIES: tl.constexpr,
    UNITARY: tl.constexpr,
    M_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """The modes of one sequence times W's conjugate."""
    d = tl.program_id(0) * D_BLOCK + tl.arange(0, D_BLOCK)[None, :]
    i = tl.program_id(1) * M_BLOCK + tl.arange(0, M_BLOCK)[:, None]
    b = tl.program_id(2).to(tl.int64)
    k = i // MP
    mode = PARITIES * (i % MP) + k
    kept = (i < PARITIES * MP) & (mode < KEPT) & (d < D)
    plane = MP * D
    at = b * PARITIES * 2 * plane + (k * MP + i) * D + d
    re = tl.load(spectrum + at, mask=kept, other=0.0)
    im = tl.load(spectrum + at + plane, mask=kept, other=0.0)
    w_re, w_im = factor(weight, mode, d, kept, scale, D, N, True, UNITARY)
    store_modes(filtered + at, re, im, w_re, w_im, plane, (i < PARITIES * MP) & (d < D))


@triton.jit
def weight_grad_kernel(
    spectrum,
    upstream,
    grad_weight,
    grad_bias,
    scale,
    bias_scale,
    ROWS,
    D,
    N,
    MP,
    KEPT,
    PARITIES: tl.constexpr,
    UNITARY: tl.constexpr,
    M_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """Sum over the ROWS sequences of conj(X) G, for a block of modes and channels.

    The imaginary part of W's mode 0 has no gradient: that of the bias is summed in its place.
    """
    d = tl.program_id(0) * D_BLOCK + tl.arange(0, D_BLOCK)[None, :]
    i = tl.program_id(1) * M_BLOCK + tl.arange(0, M_BLOCK)[:, None]
    mode = PARITIES * (i % MP) + i // MP
    kept = (i < PARITIES * MP) & (mode < KEPT) & (d < D)
    plane = MP * D
    size = PARITIES * 2 * plane
    sum_re = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    sum_im = tl.zeros((M_BLOCK, D_BLOCK), tl.float32)
    for b in tl.range(0, ROWS, loop_unroll_factor=4):
        at = tl.cast(b, tl.int64) * size + (i // MP * MP + i) * D + d
        x_re = tl.load(spectrum + at, mask=kept, other=0.0)
        x_im = tl.load(spectrum + at + plane, mask=kept, other=0.0)
        g_re = tl.load(upstream + at, mask=kept, other=0.0)
        g_im = tl.load(upstream + at + plane, mask=kept, other=0.0)
        sum_re += x_re * g_re + x_im * g_im
        sum_im += tl.where(mode == 0, g_re, x_re * g_im - x_im * g_re)

    tl.store(grad_bias + d + 0 * i, bias_scale * sum_im, mask=kept & (mode == 0))
    own = (mode == 0) | (2 * mode == N)
    share = tl.where(own, 1.0, 2.0) * scale
    if UNITARY:
        share = tl.where(own, 0.0, share)
    w = (mode * D + d) * 2
    tl.store(grad_weight + w, share * sum_re, mask=kept)
    tl.store(grad_weight + w + 1, tl.where(own, 0.0, share * sum_im), mask=kept)

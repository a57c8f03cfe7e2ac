"""The launches of the filter over sequences of any lengths; ``ragged`` has the formula.

Shapes: tiles of MODES modes, or ROWS folded tokens, and COLUMNS channels. Spectra are [2, R, D],
real and imaginary parts; M learned modes, K rows of modes a sequence.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels_folded import analyse, find_modes, mode_base, store_padding
from flashmix.ops._triton.kernels_sequences import find_tile, folded_base, token_rows
from flashmix.ops._triton.kernels_turns import first_angles, next_angles
from flashmix.ops.spectral.triton.kernels_modes import factor, store_modes


@triton.jit
def _lift(length):
    """About L^(1/4): lifts modes, which shrink like L^(-1/2), off float16's smallest numbers."""
    return tl.exp2(tl.floor(0.25 * tl.log2(length.to(tl.float32)) + 0.5))


@triton.jit(do_not_specialize=["S", "N", "K", "M", "FOLDED", "R"])
def analysis_kernel(
    x,
    grad,
    weight,
    spectrum,
    products,
    lengths,
    offsets,
    S,
    N,
    K,
    M,
    FOLDED,
    R,
    D: tl.constexpr,
    W: tl.constexpr,
    MODES: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    UNITARY: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of the spectrum of x times W, or of ``grad`` times W's conjugate where it is given.

    Both are folded, [2, FOLDED, W].

    With ``grad`` the sequence's part of the gradient of W is stored in ``products``. Mode 0's
    imaginary part has none: that of a bias is in its place.
    """
    ACROSS: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0) // ACROSS
    s, tile, start, length = find_modes(program, lengths, offsets, S, N, K, MODES)
    used = tl.minimum(M, length // 2 + 1)
    if (tile * MODES < used) & (length > 0):
        j = (tl.program_id(0) % ACROSS) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        m = tile * MODES + tl.arange(0, MODES)
        first = folded_base(offsets, s, start, N) * W + j
        x_re, x_im, g_re, g_im = analyse(
            x + first,
            None if grad is None else grad + first,
            FOLDED.to(tl.int64) * W,
            j < D,
            m,
            length,
            spectrum.dtype.element_ty,
            W,
            MODES,
            COLUMNS,
            STEP,
            EXACT,
            PRECISION,
        )
        mode = m[:, None]
        kept = (mode < used) & (j < D)
        at = (mode_base(offsets, s, start, N, K) + mode) * D + j
        plane = R.to(tl.int64) * D
        scale = _lift(length) / length.to(tl.float32)
        CONJUGATE: tl.constexpr = grad is not None
        w_re, w_im = factor(weight, mode, j, kept, scale, D, length, CONJUGATE, UNITARY)
        if UNITARY:
            # Where no mode passes unchanged, all of W is applied here, which rounds less.
            whole = tl.where(used == length // 2 + 1, scale, 0.0)
            w_re += whole * tl.where((mode == 0) | (2 * mode == length), 1.0, 2.0)
        if grad is None:
            store_modes(spectrum + at, x_re, x_im, w_re, w_im, plane, kept)
        else:
            store_modes(spectrum + at, g_re, g_im, w_re, w_im, plane, kept)
            own = (mode == 0) | (2 * mode == length)
            share = tl.where(own, 1.0, 2.0) / length.to(tl.float32)
            if UNITARY:
                share = tl.where(own, 0.0, share)
            im = tl.where(own, 0.0, share * (x_re * g_im - x_im * g_re))
            im = tl.where(mode == 0, g_re, im)
            tl.store(products + at, share * (x_re * g_re + x_im * g_im), mask=kept)
            tl.store(products + plane + at, im, mask=kept)


@triton.jit(do_not_specialize=["S", "N", "K", "M", "R"])
def synthesis_kernel(
    spectrum,
    bias,
    x,
    y,
    order,
    lengths,
    offsets,
    S,
    N,
    K,
    M,
    stride_s,
    stride_n,
    stride_d,
    y_stride_s,
    y_stride_n,
    R,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The tokens n and -n of one tile of n <= L / 2, and zeros at some of the padding.

    ``bias`` is added where it is not None; so is ``x``, whose modes from M up pass unchanged, in
    sequences that have such modes.
    """
    ACROSS: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0) // ACROSS
    s, tile, start, length = find_tile(program, lengths, offsets, S, N, 2 * ROWS)
    dtype = y.dtype.element_ty
    j = (tl.program_id(0) % ACROSS) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    wanted = j < D
    y += s.to(tl.int64) * y_stride_s + j
    if lengths is not None:
        store_padding(y, order, s, length, tile, y_stride_n, N, wanted, dtype, ROWS, COLUMNS)
    if (2 * tile * ROWS <= length) & (length > 0):
        used = tl.minimum(M, length // 2 + 1)
        spectrum += mode_base(offsets, s, start, N, K) * D
        imaginary = spectrum + R.to(tl.int64) * D
        n = tile * ROWS + tl.arange(0, ROWS)
        p = tl.zeros((ROWS, COLUMNS), tl.float32)
        q = tl.zeros((ROWS, COLUMNS), tl.float32)
        turned, c, sn, step, step_c, step_s = first_angles(n, length, STEP)
        for first in range(0, used, STEP):
            m = first + tl.arange(0, STEP)[:, None]
            kept = (m < used) & wanted
            re = tl.load(spectrum + (m * D + j), mask=kept, other=0.0)
            im = tl.load(imaginary + (m * D + j), mask=kept, other=0.0)
            p = tl.dot(c.to(dtype), re, p, input_precision=PRECISION)
            q = tl.dot(sn.to(dtype), im, q, input_precision=PRECISION)
            turned, c, sn = next_angles(turned, c, sn, step, step_c, step_s, length, EXACT)
        scale = 1.0 / _lift(length)
        p *= scale
        q *= scale
        if bias is not None:
            p += tl.load(bias + j, mask=wanted, other=0.0).to(tl.float32)
        here = (2 * n <= length) & (n < length)
        rows = token_rows(order, s, start, n, here, N)[:, None]
        kept = here[:, None] & wanted
        back = (n > 0) & (2 * n < length)
        back_rows = token_rows(order, s, start, length - n, back, N)[:, None]
        back_kept = back[:, None] & wanted
        now, then = p - q, p + q
        if x is not None:
            passing = (used + 0 * n < length // 2 + 1)[:, None]
            kept_x, back_x = kept & passing, back_kept & passing
            own = x + s.to(tl.int64) * stride_s + j * stride_d
            now += tl.load(own + rows * stride_n, mask=kept_x, other=0.0).to(tl.float32)
            then += tl.load(own + back_rows * stride_n, mask=back_x, other=0.0).to(tl.float32)
        tl.store(y + rows * y_stride_n, now.to(dtype), mask=kept)
        tl.store(y + back_rows * y_stride_n, then.to(dtype), mask=back_kept)


@triton.jit(do_not_specialize=["S", "N", "K", "M", "R", "GROUP"])
def weight_grad_kernel(
    products,
    grad_weight,
    grad_bias,
    offsets,
    S,
    N,
    K,
    M,
    R,
    GROUP,
    D: tl.constexpr,
    MODES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of W and of a bias, summed over a GROUP of sequences in their order."""
    ACROSS: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    m = (tl.program_id(0) // ACROSS) * MODES + tl.arange(0, MODES)[:, None]
    j = (tl.program_id(0) % ACROSS) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    group = tl.program_id(1)
    imaginary = products + R.to(tl.int64) * D
    re = tl.zeros((MODES, COLUMNS), tl.float32)
    im = tl.zeros((MODES, COLUMNS), tl.float32)
    for i in tl.range(0, tl.minimum(GROUP, S - group * GROUP), loop_unroll_factor=4):
        s = group * GROUP + i
        start = 0
        length = N
        if offsets is not None:
            start = tl.load(offsets + s)
            length = tl.load(offsets + s + 1) - start
        used = tl.where(length > 0, tl.minimum(M, length // 2 + 1), 0)
        kept = (m < used) & (j < D)
        at = (mode_base(offsets, s, start, N, K) + m) * D + j
        re += tl.load(products + at, mask=kept, other=0.0)
        im += tl.load(imaginary + at, mask=kept, other=0.0)
    tl.store(grad_bias + group * D + j + 0 * m, im, mask=(m == 0) & (j < D))
    at = ((group.to(tl.int64) * M + m) * D + j) * 2
    tl.store(grad_weight + at, re, mask=(m < M) & (j < D))
    tl.store(grad_weight + at + 1, tl.where(m == 0, 0.0, im), mask=(m < M) & (j < D))

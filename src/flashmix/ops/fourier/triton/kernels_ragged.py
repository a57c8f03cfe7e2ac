"""Two launches of Fourier attention over sequences of any lengths; ``ragged`` has the formula.

Shapes: tiles of MODES modes, or ROWS folded tokens, and the COLUMNS channels of a head, DH of them
and padding. Spectra are [parts, R, H * DH], rows of modes over their norms; ``rows`` [parts, H, R]
are norms and sums of rows, float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels_folded import analyse, find_modes, mode_base, store_padding
from flashmix.ops._triton.kernels_sequences import find_tile, folded_base, token_rows
from flashmix.ops._triton.kernels_turns import first_angles, next_angles


@triton.jit
def _largest(re, im):
    return tl.max(tl.maximum(tl.abs(re), tl.abs(im)), 1)[:, None]


@triton.jit(do_not_specialize=["S", "N", "R"])
def analysis_kernel(
    v,
    grad,
    spectrum,
    rows,
    lengths,
    offsets,
    S,
    N,
    R,
    eps,
    H: tl.constexpr,
    DH: tl.constexpr,
    W: tl.constexpr,
    MODES: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Modes of a head of v, each over the root of its power, and those powers.

    v and ``grad`` are folded, [2, R, W], with the heads side by side.

    With ``grad`` also its modes, each over its largest element; the gradients of the gains; and
    those largest elements.
    """
    program = tl.program_id(0) // H
    h = tl.program_id(0) % H
    s, tile, start, length = find_modes(program, lengths, offsets, S, N, None, MODES)
    if (2 * tile * MODES <= length) & (length > 0):
        d = tl.arange(0, COLUMNS)[None, :]
        m = tile * MODES + tl.arange(0, MODES)
        first = folded_base(offsets, s, start, N) * W + h * DH + d
        v_re, v_im, g_re, g_im = analyse(
            v + first,
            None if grad is None else grad + first,
            R.to(tl.int64) * W,
            d < DH,
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
        dtype = spectrum.dtype.element_ty
        mode = m[:, None]
        used = (2 * mode <= length) & (mode < length)
        kept = used & (d < DH)
        row = mode_base(offsets, s, start, N, None) + mode
        plane = R.to(tl.int64) * (H * DH)
        to = spectrum + row * (H * DH) + h * DH + d
        part = R.to(tl.int64) * H
        at = rows + h * R.to(tl.int64) + row
        power = tl.sum(v_re * v_re + v_im * v_im, 1)[:, None] / DH + eps
        norm = 1.0 / tl.sqrt(power)
        tl.store(to, (v_re * norm).to(dtype), mask=kept)
        tl.store(to + plane, (v_im * norm).to(dtype), mask=kept)
        tl.store(at, power, mask=used)
        if grad is not None:
            largest = _largest(g_re, g_im)
            norm = 1.0 / tl.where(largest > 0, largest, 1.0)
            tl.store(to + 2 * plane, (g_re * norm).to(dtype), mask=kept)
            tl.store(to + 3 * plane, (g_im * norm).to(dtype), mask=kept)
            own = (mode == 0) | (2 * mode == length)
            share = tl.where(own, 1.0, 2.0) / length.to(tl.float32)
            tl.store(at + part, share * tl.sum(v_re * g_re + v_im * g_im, 1)[:, None], mask=used)
            tl.store(at + 2 * part, largest, mask=used)


@triton.jit
def _gains(rows, part, m, length, total, mean, DH: tl.constexpr, BACKWARD: tl.constexpr):
    """What the rows of v, and those of the output's gradient, are multiplied by."""
    kept = (2 * m <= length) & (m < length)
    power = tl.load(rows + m, mask=kept, other=0.0)
    own = (m == 0) | (2 * m == length)
    share = tl.where(own, 1.0, 2.0)
    weight = power / total
    of_grad = weight
    if BACKWARD:
        slope = tl.load(rows + part + m, mask=kept, other=0.0) - mean
        of_v = tl.where(kept, tl.sqrt(power) * (slope / total), 0.0) * (
            2.0 / DH * length.to(tl.float32)
        )
        of_grad = share * weight * tl.load(rows + 2 * part + m, mask=kept, other=0.0)
    else:
        of_v = share * weight * tl.sqrt(power)
    return of_v, of_grad


@triton.jit(do_not_specialize=["S", "N", "R"])
def synthesis_kernel(
    spectrum,
    rows,
    y,
    order,
    lengths,
    offsets,
    S,
    N,
    stride_s,
    stride_n,
    stride_h,
    R,
    H: tl.constexpr,
    DH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    GAINS: tl.constexpr,
    BACKWARD: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The tokens n and -n of a head for one tile of n <= L / 2, and zeros at some of the padding.

    Gains multiply the matrix rather than the modes, which are then not rounded again. The largest
    one is taken out of them, so that they stay in the range of float16.
    """
    program = tl.program_id(0) // H
    h = tl.program_id(0) % H
    s, tile, start, length = find_tile(program, lengths, offsets, S, N, 2 * ROWS)
    dtype = y.dtype.element_ty
    d = tl.arange(0, COLUMNS)[None, :]
    wanted = d < DH
    y += s.to(tl.int64) * stride_s + h * stride_h + d
    if lengths is not None:
        store_padding(y, order, s, length, tile, stride_n, N, wanted, dtype, ROWS, COLUMNS)
    if (2 * tile * ROWS <= length) & (length > 0):
        base = mode_base(offsets, s, start, N, None)
        part = R.to(tl.int64) * H
        rows += h * R.to(tl.int64) + base
        used = length // 2 + 1
        total = 0.0
        product = 0.0
        for first in range(0, used, GAINS):
            m = first + tl.arange(0, GAINS)
            kept = (2 * m <= length) & (m < length)
            power = tl.load(rows + m, mask=kept, other=0.0)
            total += tl.sum(power, 0)
            if BACKWARD:
                product += tl.sum(power * tl.load(rows + part + m, mask=kept, other=0.0), 0)
        mean = product / total
        largest = 0.0
        for first in range(0, used, GAINS):
            m = first + tl.arange(0, GAINS)
            of_v, of_grad = _gains(rows, part, m, length, total, mean, DH, BACKWARD)
            largest = tl.maximum(largest, tl.max(tl.abs(of_v), 0))
            if BACKWARD:
                largest = tl.maximum(largest, tl.max(tl.abs(of_grad), 0))
        unit = 1.0 / tl.where(largest > 0, largest, 1.0)
        plane = R.to(tl.int64) * (H * DH)
        own = spectrum + base * (H * DH) + h * DH + d
        n = tile * ROWS + tl.arange(0, ROWS)
        p = tl.zeros((ROWS, COLUMNS), tl.float32)
        q = tl.zeros((ROWS, COLUMNS), tl.float32)
        turned, c, sn, step, step_c, step_s = first_angles(n, length, STEP)
        for first in range(0, used, STEP):
            m = first + tl.arange(0, STEP)
            of_v, of_grad = _gains(rows, part, m, length, total, mean, DH, BACKWARD)
            of_v = (of_v * unit)[None, :]
            kept = (m < used)[:, None] & wanted
            at = own + m[:, None] * (H * DH)
            re = tl.load(at, mask=kept, other=0.0)
            im = tl.load(at + plane, mask=kept, other=0.0)
            p = tl.dot((of_v * c).to(dtype), re, p, input_precision=PRECISION)
            q = tl.dot((of_v * sn).to(dtype), im, q, input_precision=PRECISION)
            if BACKWARD:
                of_grad = (of_grad * unit)[None, :]
                re = tl.load(at + 2 * plane, mask=kept, other=0.0)
                im = tl.load(at + 3 * plane, mask=kept, other=0.0)
                p = tl.dot((of_grad * c).to(dtype), re, p, input_precision=PRECISION)
                q = tl.dot((of_grad * sn).to(dtype), im, q, input_precision=PRECISION)
            turned, c, sn = next_angles(turned, c, sn, step, step_c, step_s, length, EXACT)
        scale = largest * (used.to(tl.float32) / length.to(tl.float32))
        here = (2 * n <= length) & (n < length)
        at = token_rows(order, s, start, n, here, N)[:, None] * stride_n
        tl.store(y + at, ((p - q) * scale).to(dtype), mask=here[:, None] & wanted)
        back = (n > 0) & (2 * n < length)
        at = token_rows(order, s, start, length - n, back, N)[:, None] * stride_n
        tl.store(y + at, ((p + q) * scale).to(dtype), mask=back[:, None] & wanted)

"""The three launches of FNet mixing over sequences of any lengths; ``ragged`` has the formula.

Shapes: tiles of ROWS folded rows and COLUMNS columns. Rows 0 and, of an even length, L / 2 are
their own mirror images: their odd part is zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels_sequences import find_tile, folded_base, token_rows
from flashmix.ops._triton.kernels_turns import add_residues, cos_sin_of, residue, rotate


@triton.jit(do_not_specialize=["S", "N", "R"])
def width_kernel(
    folded,
    z,
    cosines,
    sines,
    offsets,
    S,
    R,
    D: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Even rows times cos_D, and odd rows times minus sin_D: a tile of either product.

    Rows of all sequences stand one after the other, so tiles do not end with a sequence. Those that
    nobody wrote give what nobody reads.
    """
    ACROSS: tl.constexpr = (W + COLUMNS - 1) // COLUMNS
    down = (R + ROWS - 1) // ROWS
    part = tl.program_id(0) // (down * ACROSS)
    program = tl.program_id(0) % (down * ACROSS)
    # Programs that run together share rows and columns.
    group = program // (GROUP * ACROSS)
    height = tl.minimum(down - group * GROUP, GROUP)
    tile = group * GROUP + (program % (GROUP * ACROSS)) % height
    across = (program % (GROUP * ACROSS)) // height
    rows = R
    if offsets is not None:
        rows = tl.load(offsets + S) // 2 + S
    if tile * ROWS < rows:
        matrix = cosines
        if part > 0:
            matrix = sines
        r = tile * ROWS + tl.arange(0, ROWS)[:, None]
        j = across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        row = (part.to(tl.int64) * R + r) * W
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, W, STEP):
            d = first + tl.arange(0, STEP)
            a = tl.load(folded + row + d[None, :], mask=(r < rows) & (d < W)[None, :], other=0.0)
            m = tl.load(matrix + d[:, None] * W + j, mask=(d < D)[:, None] & (j < W), other=0.0)
            total = tl.dot(a, m, total, input_precision=PRECISION)
        tl.store(z + row + j, total.to(z.dtype.element_ty), mask=(r < rows) & (j < W))


@triton.jit(do_not_specialize=["S", "N", "R"])
def token_kernel(
    folded,
    y,
    order,
    lengths,
    offsets,
    S,
    N,
    stride_s,
    stride_n,
    R,
    scale,
    D: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    ORTHO: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The rows k and -k of Y for one tile of k <= L / 2, and zeros at some of the padding.

    Angles of the next STEP tokens are those of the last ones turned by k STEP / L: by residues,
    which are ``EXACT``, or by rotation, which loses a rounding of float32 a step.
    """
    ACROSS: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0) // ACROSS
    s, tile, start, length = find_tile(program, lengths, offsets, S, N, 2 * ROWS)
    dtype = y.dtype.element_ty
    y += s.to(tl.int64) * stride_s
    j = (tl.program_id(0) % ACROSS) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    if lengths is not None:
        # The tiles of a sequence share its padding, 2 ROWS tokens each.
        pad = length + tile * (2 * ROWS) + tl.arange(0, 2 * ROWS)
        if length + tile * (2 * ROWS) < N:
            rows = token_rows(order, s, start, pad, pad < N, N)[:, None] * stride_n
            nothing = tl.zeros((2 * ROWS, COLUMNS), dtype)
            tl.store(y + rows + j, nothing, mask=(pad < N)[:, None] & (j < D))
    if (2 * tile * ROWS <= length) & (length > 0):
        folded += folded_base(offsets, s, start, N) * W
        odd_part = folded + R.to(tl.int64) * W
        k = tile * ROWS + tl.arange(0, ROWS)
        last = length // 2
        turned = residue(k[:, None], tl.arange(0, STEP)[None, :], length)
        c, m = cos_sin_of(turned, length)
        step = residue(k[:, None], STEP, length)
        step_c, step_m = cos_sin_of(step, length)
        p = tl.zeros((ROWS, COLUMNS), tl.float32)
        q = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, last + 1, STEP):
            n = first + tl.arange(0, STEP)[:, None]
            wanted = (n <= last) & (n < length) & (j < W)
            even = tl.load(folded + (n * W + j), mask=wanted, other=0.0)
            odd = tl.load(odd_part + (n * W + j), mask=wanted, other=0.0)
            p = tl.dot(c.to(dtype), even, p, input_precision=PRECISION)
            q = tl.dot(m.to(dtype), odd, q, input_precision=PRECISION)
            if EXACT:
                turned = add_residues(turned, step, length)
                c, m = cos_sin_of(turned, length)
            else:
                c, m = rotate(c, m, step_c, step_m)
        if ORTHO:
            scale = scale / tl.sqrt(length.to(tl.float32))
        # q holds minus the product of sines.
        kept = (2 * k <= length) & (k < length)
        rows = token_rows(order, s, start, k, kept, N)[:, None] * stride_n
        tl.store(y + rows + j, ((p + q) * scale).to(dtype), mask=kept[:, None] & (j < D))
        paired = (k > 0) & (2 * k < length)
        rows = token_rows(order, s, start, length - k, paired, N)[:, None] * stride_n
        tl.store(y + rows + j, ((p - q) * scale).to(dtype), mask=paired[:, None] & (j < D))

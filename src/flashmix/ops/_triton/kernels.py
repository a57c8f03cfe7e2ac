"""What the kernels of the sparse attentions share.

Shapes: D width of a head, DP that width padded to a power of two, from 16 up.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(x, rows, kept, stride, D: tl.constexpr, DP: tl.constexpr):
    """Rows of ``x`` as a tile [ROWS, DP], with zeros where not ``kept`` and beyond D."""
    d = tl.arange(0, DP)[None, :]
    wanted = kept[:, None]
    if D < DP:
        wanted = wanted & (d < D)
    return tl.load(x + rows[:, None] * stride + d, mask=wanted, other=0.0)


@triton.jit
def store_rows(x, rows, kept, stride, tile, D: tl.constexpr, DP: tl.constexpr):
    """Write a tile [ROWS, DP] to the rows of ``x``, in its dtype."""
    d = tl.arange(0, DP)[None, :]
    wanted = kept[:, None]
    if D < DP:
        wanted = wanted & (d < D)
    tl.store(x + rows[:, None] * stride + d, tile.to(x.dtype.element_ty), mask=wanted)


@triton.jit
def token_rows(order, i, N, PACKED: tl.constexpr):
    """Where the tokens ``i`` stand, int64: real ones come first in ``order``, which is None where
    nothing is padding."""
    if PACKED:
        return tl.load(order + i, mask=i < N, other=0).to(tl.int64)
    return i.to(tl.int64)


@triton.jit
def true_length(lengths, b, N, PACKED: tl.constexpr):
    """Real tokens of sequence ``b``."""
    if PACKED:
        return tl.load(lengths + b)
    return N


@triton.jit
def attend(acc, peak, total, products, scale, v, PRECISION: tl.constexpr):
    """One step of the online softmax of ``products`` [ROWS, KEYS] (-inf where hidden), which times
    ``scale``, a positive number, are scores in base 2."""
    higher = tl.maximum(peak, tl.max(products, 1) * scale)
    # A row that has seen no key yet must not subtract infinities.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(products * scale - base[:, None])
    shrink = tl.exp2(peak - base)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, higher, total


@triton.jit
def finish(acc, peak, total):
    """The output, and the base-2 logarithm of the sum of exponentials; zeros where none."""
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    return acc, tl.where(empty, 0.0, peak + tl.log2(tl.where(empty, 1.0, total)))


@triton.jit
def delta_kernel(
    y,
    grad,
    delta,
    y_b,
    y_h,
    y_n,
    g_b,
    g_h,
    g_n,
    H,
    N,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """delta = sum over D of y * grad, float32 [B, H, N]."""
    blocks = tl.cdiv(N, ROWS)
    i = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // H, head % H
    rows = i.to(tl.int64)
    one = load_rows(y + b * y_b + h * y_h, rows, i < N, y_n, D, DP).to(tl.float32)
    other = load_rows(grad + b * g_b + h * g_h, rows, i < N, g_n, D, DP).to(tl.float32)
    tl.store(delta + head * N + rows, tl.sum(one * other, 1), mask=i < N)

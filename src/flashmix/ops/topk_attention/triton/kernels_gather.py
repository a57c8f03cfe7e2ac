"""Sums over the keys that each query has kept, and over the queries that have kept each key.

Inputs are contiguous; ``index`` and ``weights`` are [B, H, N, TOPK]. Shapes: H heads, GROUP query
heads to a key head, N tokens, D width of a head (DP padded).
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels import load_rows, store_rows


@triton.jit
def gather(x, index, D: tl.constexpr, DP: tl.constexpr):
    """Rows [ROWS, KEPT, DP] of ``x`` at ``index`` [ROWS, KEPT], float32; zeros where it is -1."""
    d = tl.arange(0, DP)[None, None, :]
    at = tl.maximum(index, 0).to(tl.int64)[:, :, None] * D + d
    wanted = (index >= 0)[:, :, None] & (d < D)
    return tl.load(x + at, mask=wanted, other=0.0).to(tl.float32)


@triton.jit
def query_grad_kernel(
    grad,
    k,
    v,
    y,
    index,
    weights,
    grad_q,
    slopes,
    scale,
    H,
    GROUP,
    N,
    TOPK,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    KEPT: tl.constexpr,
):
    """The gradient of ROWS queries, and that of their kept scores, float32 [B, H, N, k]."""
    blocks = tl.cdiv(N, ROWS)
    i = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    own = ((head // H) * (H // GROUP) + (head % H) // GROUP) * N * D
    row = head * N + i
    upstream = load_rows(grad, row, i < N, D, D, DP).to(tl.float32)
    output = load_rows(y, row, i < N, D, D, DP).to(tl.float32)
    delta = tl.sum(upstream * output, 1)
    acc = tl.zeros((ROWS, KEPT, DP), tl.float32)
    for start in range(0, TOPK, KEPT):
        slot = start + tl.arange(0, KEPT)[None, :]
        kept = (i < N)[:, None] & (slot < TOPK)
        at = row[:, None] * TOPK + slot
        keys = tl.load(index + at, mask=kept, other=-1)
        share = tl.load(weights + at, mask=kept, other=0.0)
        toward = tl.sum(upstream[:, None, :] * gather(v + own, keys, D, DP), 2)
        slope = share * (toward - delta[:, None]) * scale
        tl.store(slopes + at, slope, mask=kept)
        acc += slope[:, :, None] * gather(k + own, keys, D, DP)
    store_rows(grad_q, row, i < N, D, tl.sum(acc, 1), D, DP)


@triton.jit
def key_grad_kernel(
    q,
    grad,
    weights,
    slopes,
    pairs,
    offsets,
    grad_k,
    grad_v,
    TOPK,
    D: tl.constexpr,
    DP: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """The gradients of one key and its value: sums over the queries that keep it, in order."""
    key = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + key)
    last = tl.load(offsets + key + 1)
    d = tl.arange(0, DP)
    sum_k = tl.zeros((DP,), tl.float32)
    sum_v = tl.zeros((DP,), tl.float32)
    for start in range(first, last, PAIRS):
        place = start + tl.arange(0, PAIRS)
        pair = tl.load(pairs + place, mask=place < last, other=0)
        share = tl.load(weights + pair, mask=place < last, other=0.0)
        slope = tl.load(slopes + pair, mask=place < last, other=0.0)
        row = pair // TOPK
        queries = load_rows(q, row, place < last, D, D, DP).to(tl.float32)
        upstream = load_rows(grad, row, place < last, D, D, DP).to(tl.float32)
        sum_k += tl.sum(slope[:, None] * queries, 0)
        sum_v += tl.sum(share[:, None] * upstream, 0)
    tl.store(grad_k + key * D + d, sum_k.to(grad_k.dtype.element_ty), mask=d < D)
    tl.store(grad_v + key * D + d, sum_v.to(grad_v.dtype.element_ty), mask=d < D)

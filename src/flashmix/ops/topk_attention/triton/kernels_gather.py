"""Sums over the keys that each query has kept, and over the queries that have kept each key.

``index`` and ``weights`` are [B, H, N, TOPK]. Shapes: B batch, H heads, GROUP query heads to a key
head, N tokens, D width of a head (DP padded).
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels import load_rows, store_rows


@triton.jit
def gather(x, index, stride, D: tl.constexpr, DP: tl.constexpr):
    """Rows [ROWS, KEPT, DP] of ``x`` at ``index`` [ROWS, KEPT], float32; zeros where it is -1."""
    d = tl.arange(0, DP)[None, None, :]
    at = tl.maximum(index, 0).to(tl.int64)[:, :, None] * stride + d
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
    g_b,
    g_h,
    g_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    y_b,
    y_h,
    y_n,
    gq_b,
    gq_h,
    gq_n,
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
    b, h = head // H, head % H
    k += b * k_b + (h // GROUP) * k_h
    v += b * v_b + (h // GROUP) * v_h
    rows = i.to(tl.int64)
    upstream = load_rows(grad + b * g_b + h * g_h, rows, i < N, g_n, D, DP).to(tl.float32)
    output = load_rows(y + b * y_b + h * y_h, rows, i < N, y_n, D, DP).to(tl.float32)
    delta = tl.sum(upstream * output, 1)
    acc = tl.zeros((ROWS, KEPT, DP), tl.float32)
    for start in range(0, TOPK, KEPT):
        slot = start + tl.arange(0, KEPT)[None, :]
        kept = (i < N)[:, None] & (slot < TOPK)
        at = (head * N + rows)[:, None] * TOPK + slot
        keys = tl.load(index + at, mask=kept, other=-1)
        share = tl.load(weights + at, mask=kept, other=0.0)
        toward = tl.sum(upstream[:, None, :] * gather(v, keys, v_n, D, DP), 2)
        slope = share * (toward - delta[:, None]) * scale
        tl.store(slopes + at, slope, mask=kept)
        acc += slope[:, :, None] * gather(k, keys, k_n, D, DP)
    grad_q += b * gq_b + h * gq_h
    store_rows(grad_q, rows, i < N, gq_n, tl.sum(acc, 1), D, DP)


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
    q_b,
    q_h,
    q_n,
    g_b,
    g_h,
    g_n,
    gk_b,
    gk_h,
    gk_n,
    gv_b,
    gv_h,
    gv_n,
    H,
    GROUP,
    N,
    TOPK,
    D: tl.constexpr,
    DP: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """The gradients of one key and its value: sums over the queries that keep it, in order."""
    j = tl.program_id(0) % N
    head = (tl.program_id(0) // N).to(tl.int64)
    b, own = head // (H // GROUP), head % (H // GROUP)
    q += b * q_b + own * GROUP * q_h
    grad += b * g_b + own * GROUP * g_h
    first = tl.load(offsets + head * N + j)
    last = tl.load(offsets + head * N + j + 1)
    d = tl.arange(0, DP)
    sum_k = tl.zeros((DP,), tl.float32)
    sum_v = tl.zeros((DP,), tl.float32)
    for start in range(first, last, PAIRS):
        place = start + tl.arange(0, PAIRS)
        pair = tl.load(pairs + place, mask=place < last, other=0)
        share = tl.load(weights + pair, mask=place < last, other=0.0)
        slope = tl.load(slopes + pair, mask=place < last, other=0.0)
        # Counted from the first query of the first head that shares the key.
        row = pair // TOPK - head * GROUP * N
        member = row // N
        i = row - member * N
        at = member * q_h + i * q_n
        queries = load_rows(q, at, place < last, 1, D, DP).to(tl.float32)
        at = member * g_h + i * g_n
        upstream = load_rows(grad, at, place < last, 1, D, DP).to(tl.float32)
        sum_k += tl.sum(slope[:, None] * queries, 0)
        sum_v += tl.sum(share[:, None] * upstream, 0)
    grad_k += b * gk_b + own * gk_h + j.to(tl.int64) * gk_n
    grad_v += b * gv_b + own * gv_h + j.to(tl.int64) * gv_n
    tl.store(grad_k + d, sum_k.to(grad_k.dtype.element_ty), mask=d < D)
    tl.store(grad_v + d, sum_v.to(grad_v.dtype.element_ty), mask=d < D)

"""Sliding windows as tiles: each block of queries visits the key blocks that its window meets.

Token i sees token j where i - BEFORE <= j <= i + AFTER, both counted in real tokens.

Shapes: B batch, H heads, GROUP query heads to a key head, N tokens, D width of a head (DP padded).
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels import (
    attend,
    finish,
    load_rows,
    store_rows,
    token_rows,
    true_length,
)


@triton.jit
def _span(start, length, BEFORE, AFTER, ROWS: tl.constexpr, STEP: tl.constexpr):
    """What ROWS tokens from ``start`` see, in steps of STEP: from where, from where to where
    each sees all of a step, and up to where."""
    length = tl.where(start < length, length, 0)
    first = tl.maximum(start - BEFORE, 0) // STEP * STEP
    last = tl.minimum(start + ROWS + AFTER, length)
    whole_first = tl.cdiv(tl.maximum(start + ROWS - 1 - BEFORE, 0), STEP) * STEP
    whole_last = tl.minimum(start + AFTER + 1, length) // STEP * STEP
    return first, whole_first, tl.maximum(whole_first, whole_last), last


@triton.jit
def _visit(
    acc,
    peak,
    total,
    q,
    k,
    v,
    i,
    first,
    last,
    order,
    length,
    stride_k,
    stride_v,
    scale,
    N,
    BEFORE,
    AFTER,
    D: tl.constexpr,
    DP: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend from the queries ``i`` to the keys from ``first`` to ``last``."""
    for start in range(first, last, KEYS):
        j = start + tl.arange(0, KEYS)
        rows = token_rows(order, j, N, PACKED)
        keys = load_rows(k, rows, j < length, stride_k, D, DP)
        values = load_rows(v, rows, j < length, stride_v, D, DP)
        products = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
        if MASKED:
            offset = i[:, None] - j[None, :]
            seen = (offset <= BEFORE) & (-offset <= AFTER) & (j[None, :] < length)
            products = tl.where(seen, products, float("-inf"))
        acc, peak, total = attend(acc, peak, total, products, scale, values, PRECISION)
    return acc, peak, total


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    y,
    logarithm,
    order,
    lengths,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    y_b,
    y_h,
    y_n,
    scale,
    H,
    GROUP,
    N,
    BEFORE,
    AFTER,
    D: tl.constexpr,
    DP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The output of one block of queries, and its base-2 logarithms of sums of exponentials."""
    blocks = tl.cdiv(N, QUERIES)
    start = (tl.program_id(0) % blocks) * QUERIES
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // H, head % H
    q += b * q_b + h * q_h
    k += b * k_b + (h // GROUP) * k_h
    v += b * v_b + (h // GROUP) * v_h
    if PACKED:
        order += b * N
    length = true_length(lengths, b, N, PACKED)

    i = start + tl.arange(0, QUERIES)
    rows = token_rows(order, i, N, PACKED)
    tile = load_rows(q, rows, i < length, q_n, D, DP)
    acc = tl.zeros((QUERIES, DP), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    peak = tl.full((QUERIES,), float("-inf"), tl.float32)
    first, whole_first, whole_last, last = _span(start, length, BEFORE, AFTER, QUERIES, KEYS)
    for part in tl.static_range(3):
        low = first if part == 0 else (whole_first if part == 1 else whole_last)
        high = tl.minimum(whole_first, last) if part == 0 else (whole_last if part == 1 else last)
        acc, peak, total = _visit(
            acc,
            peak,
            total,
            tile,
            k,
            v,
            i,
            low,
            high,
            order,
            length,
            k_n,
            v_n,
            scale,
            N,
            BEFORE,
            AFTER,
            D,
            DP,
            KEYS,
            part != 1,
            PACKED,
            PRECISION,
        )
    acc, sums = finish(acc, peak, total)
    real = i < length
    y += b * y_b + h * y_h
    store_rows(y, rows, i < N, y_n, tl.where(real[:, None], acc, 0.0), D, DP)
    tl.store(logarithm + head * N + rows, tl.where(real, sums, 0.0), mask=i < N)


@triton.jit
def backward_kernel(
    q,
    k,
    v,
    grad,
    logarithm,
    delta,
    grad_q,
    grad_k,
    grad_v,
    order,
    lengths,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    g_b,
    g_h,
    g_n,
    gq_b,
    gq_h,
    gq_n,
    gk_b,
    gk_h,
    gk_n,
    gv_b,
    gv_h,
    gv_n,
    scale,
    base_2,
    H,
    GROUP,
    N,
    BEFORE,
    AFTER,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of ROWS tokens of one key head and its query heads.

    As keys they sum over the queries that see them, then as queries over the keys that they see.
    """
    blocks = tl.cdiv(N, ROWS)
    start = (tl.program_id(0) % blocks) * ROWS
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, own = head // (H // GROUP), head % (H // GROUP)
    q += b * q_b
    grad += b * g_b
    k += b * k_b + own * k_h
    v += b * v_b + own * v_h
    if PACKED:
        order += b * N
    length = true_length(lengths, b, N, PACKED)
    at = start + tl.arange(0, ROWS)
    real = at < length
    rows = token_rows(order, at, N, PACKED)

    keys = load_rows(k, rows, real, k_n, D, DP)
    values = load_rows(v, rows, real, v_n, D, DP)
    sum_k = tl.zeros((ROWS, DP), tl.float32)
    sum_v = tl.zeros((ROWS, DP), tl.float32)
    first, _, _, last = _span(start, length, AFTER, BEFORE, ROWS, STEP)
    for member in range(GROUP):
        h = own * GROUP + member
        line = (b * H + h) * N
        for low in range(first, last, STEP):
            i = low + tl.arange(0, STEP)
            there = token_rows(order, i, N, PACKED)
            queries = load_rows(q + h * q_h, there, i < length, q_n, D, DP)
            upstream = load_rows(grad + h * g_h, there, i < length, g_n, D, DP)
            sums = tl.load(logarithm + line + there, mask=i < length, other=0.0)
            taken = tl.load(delta + line + there, mask=i < length, other=0.0)
            scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * base_2
            offset = i[None, :] - at[:, None]
            seen = (offset <= BEFORE) & (-offset <= AFTER) & (i[None, :] < length) & real[:, None]
            # Hidden scores may exceed the sum of the others by any amount.
            weights = tl.exp2(tl.where(seen, scores - sums[None, :], float("-inf")))
            sum_v = tl.dot(weights.to(upstream.dtype), upstream, sum_v, input_precision=PRECISION)
            share = tl.dot(values, tl.trans(upstream), input_precision=PRECISION)
            slope = weights * (share - taken[None, :])
            sum_k = tl.dot(slope.to(queries.dtype), queries, sum_k, input_precision=PRECISION)
    store_rows(grad_k + b * gk_b + own * gk_h, rows, at < N, gk_n, sum_k * scale, D, DP)
    store_rows(grad_v + b * gv_b + own * gv_h, rows, at < N, gv_n, sum_v, D, DP)

    first, _, _, last = _span(start, length, BEFORE, AFTER, ROWS, STEP)
    for member in range(GROUP):
        h = own * GROUP + member
        line = (b * H + h) * N
        queries = load_rows(q + h * q_h, rows, real, q_n, D, DP)
        upstream = load_rows(grad + h * g_h, rows, real, g_n, D, DP)
        sums = tl.load(logarithm + line + rows, mask=real, other=0.0)
        taken = tl.load(delta + line + rows, mask=real, other=0.0)
        sum_q = tl.zeros((ROWS, DP), tl.float32)
        for low in range(first, last, STEP):
            j = low + tl.arange(0, STEP)
            there = token_rows(order, j, N, PACKED)
            seen_keys = load_rows(k, there, j < length, k_n, D, DP)
            seen_values = load_rows(v, there, j < length, v_n, D, DP)
            scores = tl.dot(queries, tl.trans(seen_keys), input_precision=PRECISION) * base_2
            offset = at[:, None] - j[None, :]
            seen = (offset <= BEFORE) & (-offset <= AFTER) & (j[None, :] < length) & real[:, None]
            weights = tl.exp2(tl.where(seen, scores - sums[:, None], float("-inf")))
            share = tl.dot(upstream, tl.trans(seen_values), input_precision=PRECISION)
            slope = weights * (share - taken[:, None])
            sum_q = tl.dot(slope.to(seen_keys.dtype), seen_keys, sum_q, input_precision=PRECISION)
        store_rows(grad_q + b * gq_b + h * gq_h, rows, at < N, gq_n, sum_q * scale, D, DP)

"""Attention from blocks of queries to the key blocks that each has chosen.

Blocks hold BLOCK real tokens, in PARTS tiles of TILE rows, a power of two from 16 up; rows of a
block beyond BLOCK count for nothing.

Shapes: B batch, H heads, GROUP query heads to a key head, N tokens, D width of a head (DP padded),
G blocks, S blocks chosen.
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
def _tokens(
    block, part, order, length, N, BLOCK: tl.constexpr, TILE: tl.constexpr, PACKED: tl.constexpr
):
    """The tokens of a part of a block: their places among the real ones, where they stand, which
    of the rows are tokens at all, and which are real."""
    slot = part * TILE + tl.arange(0, TILE)
    place = block * BLOCK + slot
    inside = (slot < BLOCK) & (place < N)
    return place, token_rows(order, place, N, PACKED), inside, inside & (place < length)


@triton.jit
def pool_kernel(
    x,
    pooled,
    order,
    lengths,
    x_b,
    x_h,
    x_n,
    H,
    N,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    FIRST: tl.constexpr,
    PACKED: tl.constexpr,
):
    """The mean of a block's real tokens, or the first of them, float32 [B, H, G, D]."""
    blocks = tl.cdiv(N, BLOCK)
    block = tl.program_id(0) % blocks
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b = head // H
    x += b * x_b + (head % H) * x_h
    if PACKED:
        order += b * N
    length = true_length(lengths, b, N, PACKED)
    place, rows, _inside, real = _tokens(block, 0, order, length, N, BLOCK, TILE, PACKED)
    if FIRST:
        real = real & (place == block * BLOCK)
    total = tl.sum(load_rows(x, rows, real, x_n, D, DP).to(tl.float32), 0)
    mean = total / tl.maximum(tl.sum(real.to(tl.float32), 0), 1.0)
    d = tl.arange(0, DP)
    tl.store(pooled + (head * blocks + block) * D + d, mean, mask=d < D)


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    chosen,
    counts,
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
    base_2,
    H,
    GROUP,
    N,
    S,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The output of one block of queries, and its base-2 logarithms of sums of exponentials."""
    blocks = tl.cdiv(N, BLOCK)
    part = tl.program_id(0) % PARTS
    block = tl.program_id(0) // PARTS % blocks
    head = (tl.program_id(0) // (PARTS * blocks)).to(tl.int64)
    b, h = head // H, head % H
    q += b * q_b + h * q_h
    k += b * k_b + (h // GROUP) * k_h
    v += b * v_b + (h // GROUP) * v_h
    if PACKED:
        order += b * N
    length = true_length(lengths, b, N, PACKED)
    i, rows, inside, real = _tokens(block, part, order, length, N, BLOCK, TILE, PACKED)
    tile = load_rows(q, rows, real, q_n, D, DP)
    acc = tl.zeros((TILE, DP), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    peak = tl.full((TILE,), float("-inf"), tl.float32)
    choice = head * blocks + block
    for step in range(tl.load(counts + choice) * PARTS):
        other = tl.load(chosen + choice * S + step // PARTS)
        j, there, _, kept = _tokens(other, step % PARTS, order, length, N, BLOCK, TILE, PACKED)
        keys = load_rows(k, there, kept, k_n, D, DP)
        values = load_rows(v, there, kept, v_n, D, DP)
        seen = kept[None, :] & real[:, None]
        if CAUSAL:
            seen = seen & (j[None, :] <= i[:, None])
        products = tl.dot(tile, tl.trans(keys), input_precision=PRECISION)
        products = tl.where(seen, products, float("-inf"))
        acc, peak, total = attend(acc, peak, total, products, base_2, values, PRECISION)
    acc, sums = finish(acc, peak, total)
    store_rows(y + b * y_b + h * y_h, rows, inside, y_n, acc, D, DP)
    tl.store(logarithm + head * N + rows, sums, mask=inside)


@triton.jit
def query_grad_kernel(
    q,
    k,
    v,
    grad,
    chosen,
    counts,
    logarithm,
    delta,
    grad_q,
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
    scale,
    base_2,
    H,
    GROUP,
    N,
    S,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of one block of queries."""
    blocks = tl.cdiv(N, BLOCK)
    part = tl.program_id(0) % PARTS
    block = tl.program_id(0) // PARTS % blocks
    head = (tl.program_id(0) // (PARTS * blocks)).to(tl.int64)
    b, h = head // H, head % H
    k += b * k_b + (h // GROUP) * k_h
    v += b * v_b + (h // GROUP) * v_h
    if PACKED:
        order += b * N
    length = true_length(lengths, b, N, PACKED)
    i, rows, inside, real = _tokens(block, part, order, length, N, BLOCK, TILE, PACKED)
    queries = load_rows(q + b * q_b + h * q_h, rows, real, q_n, D, DP)
    upstream = load_rows(grad + b * g_b + h * g_h, rows, real, g_n, D, DP)
    sums = tl.load(logarithm + head * N + rows, mask=real, other=0.0)
    taken = tl.load(delta + head * N + rows, mask=real, other=0.0)
    acc = tl.zeros((TILE, DP), tl.float32)
    choice = head * blocks + block
    for step in range(tl.load(counts + choice) * PARTS):
        other = tl.load(chosen + choice * S + step // PARTS)
        j, there, _, kept = _tokens(other, step % PARTS, order, length, N, BLOCK, TILE, PACKED)
        keys = load_rows(k, there, kept, k_n, D, DP)
        values = load_rows(v, there, kept, v_n, D, DP)
        seen = kept[None, :] & real[:, None]
        if CAUSAL:
            seen = seen & (j[None, :] <= i[:, None])
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * base_2
        weights = tl.exp2(tl.where(seen, scores - sums[:, None], float("-inf")))
        share = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
        slope = weights * (share - taken[:, None])
        acc = tl.dot(slope.to(keys.dtype), keys, acc, input_precision=PRECISION)
    grad_q += b * gq_b + h * gq_h
    store_rows(grad_q, rows, inside, gq_n, acc * scale, D, DP)


@triton.jit
def key_grad_kernel(
    q,
    k,
    v,
    grad,
    pairs,
    offsets,
    logarithm,
    delta,
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
    S,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of one block of keys and values: sums over the query blocks that chose it."""
    blocks = tl.cdiv(N, BLOCK)
    part = tl.program_id(0) % PARTS
    block = tl.program_id(0) // PARTS % blocks
    head = (tl.program_id(0) // (PARTS * blocks)).to(tl.int64)
    b, own = head // (H // GROUP), head % (H // GROUP)
    if PACKED:
        order += b * N
    length = true_length(lengths, b, N, PACKED)
    j, rows, inside, real = _tokens(block, part, order, length, N, BLOCK, TILE, PACKED)
    keys = load_rows(k + b * k_b + own * k_h, rows, real, k_n, D, DP)
    values = load_rows(v + b * v_b + own * v_h, rows, real, v_n, D, DP)
    sum_k = tl.zeros((TILE, DP), tl.float32)
    sum_v = tl.zeros((TILE, DP), tl.float32)
    first = tl.load(offsets + head * blocks + block)
    last = tl.load(offsets + head * blocks + block + 1)
    for step in range(first * PARTS, last * PARTS):
        choice = tl.load(pairs + step // PARTS) // S
        line = choice // blocks
        h = line % H
        i, there, _, kept = _tokens(
            choice % blocks, step % PARTS, order, length, N, BLOCK, TILE, PACKED
        )
        queries = load_rows(q + b * q_b + h * q_h, there, kept, q_n, D, DP)
        upstream = load_rows(grad + b * g_b + h * g_h, there, kept, g_n, D, DP)
        sums = tl.load(logarithm + line * N + there, mask=kept, other=0.0)
        taken = tl.load(delta + line * N + there, mask=kept, other=0.0)
        seen = real[:, None] & kept[None, :]
        if CAUSAL:
            seen = seen & (j[:, None] <= i[None, :])
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * base_2
        weights = tl.exp2(tl.where(seen, scores - sums[None, :], float("-inf")))
        sum_v = tl.dot(weights.to(upstream.dtype), upstream, sum_v, input_precision=PRECISION)
        share = tl.dot(values, tl.trans(upstream), input_precision=PRECISION)
        slope = weights * (share - taken[None, :])
        sum_k = tl.dot(slope.to(queries.dtype), queries, sum_k, input_precision=PRECISION)
    grad_k += b * gk_b + own * gk_h
    grad_v += b * gv_b + own * gv_h
    store_rows(grad_k, rows, inside, gk_n, sum_k * scale, D, DP)
    store_rows(grad_v, rows, inside, gv_n, sum_v, D, DP)

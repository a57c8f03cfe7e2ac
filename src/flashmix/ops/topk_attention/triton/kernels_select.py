"""Candidates of exact top-k: the scores are computed twice, kept never.

The keys fall into as many groups as a tile has columns, or twice as many. A first pass over a
query's scores keeps each group's maximum; the k-th largest of these never exceeds the k-th largest
score, so a second pass marks the few keys that reach it.

Inputs are contiguous. Shapes: H heads, GROUP query heads to a key head, N tokens, D width of a
head (DP padded), C slots of a query.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels import load_rows, token_rows, true_length
from flashmix.ops.topk_attention.triton.kernels_scores import (
    LOWEST,
    UNFIT,
    append,
    dealt,
    limits,
    middle_of,
    ordered,
    products,
    quarters,
    tile_keys,
    unordered,
    visible,
    wanted,
)


@triton.jit
def _maxima(
    highest,
    q,
    k,
    order,
    i,
    start,
    stop,
    length,
    N,
    D: tl.constexpr,
    DP: tl.constexpr,
    KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
    CAUSAL: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The maximum of every KEYS-th score from ``start`` on, and of ``highest``; all keys before
    ``stop`` are seen where WHOLE."""
    column = tl.arange(0, KEYS)
    for at in range(start, stop, KEYS):
        scores = products(q, k, order, at, column, length, N, D, DP, WHOLE, PACKED, PRECISION)
        if not WHOLE:
            seen = visible(i[:, None], (at + column)[None, :], length, CAUSAL)
            scores = tl.where(seen, scores, float("-inf"))
        highest = tl.maximum(highest, scores)
    return highest


@triton.jit
def bound_kernel(
    q,
    k,
    bounds,
    order,
    lengths,
    H,
    GROUP,
    N,
    TOPK,
    D: tl.constexpr,
    DP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PARTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What no query of one block has fewer than k scores from: float32 [B, H, N].

    It is about the k-th largest of KEYS maxima, each of every KEYS-th key, or of as many again of
    either half of the keys where PARTS is 2.
    """
    blocks = tl.cdiv(N, QUERIES)
    # The longest rows first, so that causal programs of unequal length end together.
    start = (blocks - 1 - tl.program_id(0) % blocks) * QUERIES
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // H, head % H
    k += (b * (H // GROUP) + h // GROUP) * N * D
    if PACKED:
        order += b * N
    length = true_length(lengths, b, N, PACKED)
    i = start + tl.arange(0, QUERIES)
    rows = token_rows(order, i, N, PACKED)
    tile = load_rows(q + head * N * D, rows, i < length, D, D, DP)
    whole, last = limits(start, length, QUERIES, KEYS, CAUSAL)

    half = whole // (2 * KEYS) * KEYS if PARTS == 2 else 0
    first = tl.full((QUERIES, KEYS), float("-inf"), tl.float32)
    second = first
    # The first half of the keys if they have groups of their own, the rest, and the edge.
    for part in tl.static_range(2 - PARTS, 3):
        at = 0 if part == 0 else (half if part == 1 else whole)
        stop = half if part == 0 else (whole if part == 1 else last)
        highest = first if part == 0 else second
        highest = _maxima(
            highest,
            tile,
            k,
            order,
            i,
            at,
            stop,
            length,
            N,
            D,
            DP,
            KEYS,
            part < 2,
            CAUSAL,
            PACKED,
            PRECISION,
        )
        if part == 0:
            first = highest
        else:
            second = highest
    groups = ordered(second)
    low, high = tl.min(groups, 1), tl.max(groups, 1)
    others = groups
    if PARTS == 2:
        others = ordered(first)
        low = tl.minimum(low, tl.min(others, 1))
        high = tl.maximum(high, tl.max(others, 1))
    high += 1
    # What is left may be 2^-8 of the range of the maxima, and 2^-8 of the k-th.
    middle = middle_of(low, high)
    close = tl.minimum((middle - low) >> 8, 1 << 14)
    while tl.max((middle - low > close).to(tl.int32), 0) > 0:
        reaching = (groups >= middle[:, None]).to(tl.int32)
        if PARTS == 2:
            reaching += (others >= middle[:, None]).to(tl.int32)
        enough = tl.sum(reaching, 1) >= TOPK
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
        middle = middle_of(low, high)
    # 2^-16 below it, for what another order of the same sums would round otherwise.
    low = tl.maximum(low, LOWEST + 128) - 128
    tl.store(bounds + head * N + i, unordered(low), mask=i < N)


@triton.jit
def collect_kernel(
    q,
    k,
    bounds,
    words_to,
    counts,
    order,
    lengths,
    H,
    GROUP,
    N,
    TOPK,
    D: tl.constexpr,
    DP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    C: tl.constexpr,
    CAUSAL: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The keys whose scores reach the bounds of one block of queries, in order, as words.

    ``counts`` says how many words there are, or UNFIT where their keys are more than C.
    """
    blocks = tl.cdiv(N, QUERIES)
    start = (blocks - 1 - tl.program_id(0) % blocks) * QUERIES
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // H, head % H
    k += (b * (H // GROUP) + h // GROUP) * N * D
    if PACKED:
        order += b * N
    length = true_length(lengths, b, N, PACKED)
    i = start + tl.arange(0, QUERIES)
    rows = token_rows(order, i, N, PACKED)
    tile = load_rows(q + head * N * D, rows, i < length, D, D, DP)
    whole, last = limits(start, length, QUERIES, KEYS, CAUSAL)

    words_to += (head * N + start) * C
    bound = tl.load(bounds + head * N + i, mask=i < length, other=float("inf"))[:, None, None]
    column = dealt(KEYS)
    words = tl.zeros((QUERIES,), tl.int32)
    bits = tl.zeros((QUERIES, 4), tl.int32)
    for part in tl.static_range(2):
        for at in range(0 if part == 0 else whole, whole if part == 0 else last, KEYS):
            scores = products(
                tile, k, order, at, column, length, N, D, DP, part == 0, PACKED, PRECISION
            )
            # NaN compares as false, and so is always a candidate.
            kept = (quarters(scores, QUERIES, KEYS) < bound) == 0
            if part == 1:
                kept = kept & visible(i[:, None, None], tile_keys(at, KEYS), length, CAUSAL)
            words, bits = append(words_to, kept, at, i < length, words, bits, QUERIES, KEYS, C)
    found = tl.sum(bits, 1)
    fits = (found <= C) & (found >= wanted(i, length, TOPK, CAUSAL))
    tl.store(counts + head * N + i, tl.where(fits, words, UNFIT), mask=i < N)

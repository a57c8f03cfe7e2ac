"""The kept keys of queries with more candidates than there is room for, by bisection.

Inputs are contiguous. Shapes: H heads, GROUP query heads to a key head, N tokens, D width of a
head (DP padded), C slots of a query.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels import load_rows, token_rows, true_length
from flashmix.ops.topk_attention.triton.kernels_scores import (
    LOWEST,
    NAN,
    UNFIT,
    append,
    dealt,
    limits,
    middle_of,
    ordered,
    products,
    quarters,
    visible,
    wanted,
)


@triton.jit
def search_kernel(
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
    BOUNDED: tl.constexpr,
    CAUSAL: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Exactly the kept keys of one block of queries, by bisection: a pass over scores a step.

    A block whose candidates all found room has nothing to do. Without ``BOUNDED`` there are none.
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
    want = wanted(i, length, TOPK, CAUSAL)
    unfit = i < N
    if BOUNDED:
        unfit = tl.load(counts + head * N + i, mask=i < N, other=0) == UNFIT
    if tl.max(unfit.to(tl.int32), 0) > 0:
        rows = token_rows(order, i, N, PACKED)
        tile = load_rows(q + head * N * D, rows, i < length, D, D, DP)
        last = limits(start, length, QUERIES, KEYS, CAUSAL)[1]
        low = tl.full((QUERIES,), LOWEST, tl.int32)
        if BOUNDED:
            low = ordered(tl.load(bounds + head * N + i, mask=i < length, other=0.0))
        above = tl.zeros((QUERIES,), tl.int32)
        high = tl.where(want > 0, NAN + 1, low + 1)
        # A step above the bound first: where many scores tie at it, the search is nearly over.
        middle = tl.where(want > 0, low + 4096, low)
        column = dealt(KEYS)
        while tl.max((middle > low).to(tl.int32), 0) > 0:
            reached = tl.zeros((QUERIES,), tl.int32)
            for at in range(0, last, KEYS):
                scores = products(
                    tile, k, order, at, column, length, N, D, DP, False, PACKED, PRECISION
                )
                seen = visible(i[:, None], (at + column)[None, :], length, CAUSAL)
                # Adding zero makes -0 a +0, which ties with it.
                key = ordered(scores + 0.0)
                reached += tl.sum((seen & (key >= middle[:, None])).to(tl.int32), 1)
            enough = reached >= want
            above = tl.where(enough, above, reached)
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
            middle = middle_of(low, high)
        words_to += (head * N + start) * C
        left = (want - above)[:, None]
        words = tl.zeros((QUERIES,), tl.int32)
        bits = tl.zeros((QUERIES, 4), tl.int32)
        for at in range(0, last, KEYS):
            scores = products(
                tile, k, order, at, column, length, N, D, DP, False, PACKED, PRECISION
            )
            key = ordered(tl.reshape(quarters(scores, QUERIES, KEYS), (QUERIES, KEYS)) + 0.0)
            seen = visible(i[:, None], (at + tl.arange(0, KEYS))[None, :], length, CAUSAL)
            tie = (seen & (key == low[:, None])).to(tl.int32)
            kept = (tie > 0) & (tl.cumsum(tie, 1) <= left)
            kept = kept | (seen & (key > low[:, None]))
            left -= tl.sum(tie, 1)[:, None]
            kept = tl.reshape(kept, (QUERIES, 4, KEYS // 4))
            words, bits = append(words_to, kept, at, want > 0, words, bits, QUERIES, KEYS, C)
        tl.store(counts + head * N + i, words, mask=i < N)

"""Exact top-k in tiles: the scores are computed twice, kept never.

The keys fall into as many groups as a tile has columns. A first pass over a query's scores keeps
each group's maximum; the k-th largest of these never exceeds the k-th largest score, so a second
pass, with the same products in the same order, stores the few scores that reach it. Where they do
not fit the buffer, bisection finds the k-th score, with a pass a step.

Inputs are contiguous. Shapes: H heads, GROUP query heads to a key head, N tokens, D width of a
head (DP padded), C slots of a query's buffer.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels import load_rows, token_rows, true_length

# Ordered integers of -inf, of +inf and one that stands for every NaN, which sorts above all.
_LOWEST = tl.constexpr(-2139095041)
_HIGHEST = tl.constexpr(0x7F800000)
_NAN = tl.constexpr(0x7FA00000)


@triton.jit
def _ordered(scores):
    """float32 as int32 in the same order, NaN above all."""
    bits = scores.to(tl.int32, bitcast=True)
    return tl.where(scores == scores, bits ^ ((bits >> 31) & 0x7FFFFFFF), _NAN)


@triton.jit
def _unordered(key):
    """Undo :func:`_ordered`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _middle(low, high):
    """The integer half way, rounded down, of two whose difference may overflow."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def _scores(
    q,
    k,
    start,
    order,
    length,
    scale,
    N,
    D: tl.constexpr,
    DP: tl.constexpr,
    KEYS: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The scores of KEYS keys from ``start``, and where those stand.

    Every pass calls this with the same shapes, so that a score has the same bits in all.
    """
    j = start + tl.arange(0, KEYS)
    rows = token_rows(order, j, N, PACKED)
    keys = load_rows(k, rows, j < length, D, D, DP)
    # Adding zero makes -0 a +0, which ties with it.
    return tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale + 0.0, rows


@triton.jit
def _seen(i, start, length, KEYS: tl.constexpr, CAUSAL: tl.constexpr):
    """Which of KEYS keys from ``start`` the queries ``i`` may keep."""
    j = start + tl.arange(0, KEYS)[None, :]
    seen = (j < length) & (i[:, None] < length)
    if CAUSAL:
        seen = seen & (j <= i[:, None])
    return seen


@triton.jit
def _append(scores_to, index_to, scores, keys, kept, to, found, C: tl.constexpr):
    """Store the kept scores and their keys behind the ``found`` ones; how many there are then."""
    one = kept.to(tl.int32)
    slot = found[:, None] + tl.cumsum(one, 1) - one
    fits = kept & (slot < C)
    at = to[:, None] * C + slot
    tl.store(scores_to + at, scores, mask=fits)
    tl.store(index_to + at, keys.to(tl.int32)[None, :], mask=fits)
    return found + tl.sum(one, 1)


@triton.jit
def _limits(start, length, QUERIES: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr):
    """Up to where every query of the block sees all keys of a tile, and up to where any does."""
    last = tl.where(start < length, length, 0)
    whole = last
    if CAUSAL:
        whole = tl.minimum(last, start + 1)
        last = tl.minimum(last, start + QUERIES)
    return whole // KEYS * KEYS, last


@triton.jit
def _wanted(i, length, TOPK, CAUSAL: tl.constexpr):
    """How many keys each query keeps; none at padding."""
    visible = tl.minimum(i + 1, length) if CAUSAL else length
    return tl.where(i < length, tl.minimum(visible, TOPK), 0)


@triton.jit
def bound_kernel(
    q,
    k,
    bounds,
    order,
    lengths,
    scale,
    H,
    GROUP,
    N,
    TOPK,
    D: tl.constexpr,
    DP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What no query of one block has fewer than k scores from: float32 [B, H, N].

    It is about the k-th largest of KEYS maxima, each of every KEYS-th key.
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
    whole, last = _limits(start, length, QUERIES, KEYS, CAUSAL)

    highest = tl.full((QUERIES, KEYS), float("-inf"), tl.float32)
    for part in tl.static_range(2):
        for at in range(0 if part == 0 else whole, whole if part == 0 else last, KEYS):
            scores, _there = _scores(
                tile, k, at, order, length, scale, N, D, DP, KEYS, PACKED, PRECISION
            )
            if part == 1:
                seen = _seen(i, at, length, KEYS, CAUSAL)
                scores = tl.where(seen, scores, float("-inf"))
            highest = tl.maximum(highest, scores)
    groups = _ordered(highest)
    low = tl.full((QUERIES,), _LOWEST, tl.int32)
    high = tl.full((QUERIES,), _HIGHEST + 1, tl.int32)
    # Twenty halvings leave the bound within a thousandth of the k-th maximum, and below it.
    for _step in range(20):
        middle = _middle(low, high)
        enough = tl.sum((groups >= middle[:, None]).to(tl.int32), 1) >= TOPK
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    tl.store(bounds + head * N + rows, _unordered(low), mask=i < N)


@triton.jit
def collect_kernel(
    q,
    k,
    bounds,
    scores_to,
    index_to,
    counts,
    order,
    lengths,
    scale,
    H,
    GROUP,
    N,
    D: tl.constexpr,
    DP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    C: tl.constexpr,
    CAUSAL: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The scores of one block of queries that reach their bounds, in the order of the keys.

    ``counts`` says how many there are, which may be more than there is room for.
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
    whole, last = _limits(start, length, QUERIES, KEYS, CAUSAL)

    to = head * N + rows
    bound = tl.load(bounds + to, mask=i < length, other=float("inf"))
    found = tl.zeros((QUERIES,), tl.int32)
    for part in tl.static_range(2):
        for at in range(0 if part == 0 else whole, whole if part == 0 else last, KEYS):
            scores, there = _scores(
                tile, k, at, order, length, scale, N, D, DP, KEYS, PACKED, PRECISION
            )
            # NaN compares as false, and so is always a candidate.
            kept = (scores < bound[:, None]) == 0
            if part == 1:
                kept = kept & _seen(i, at, length, KEYS, CAUSAL)
            found = _append(scores_to, index_to, scores, there, kept, to, found, C)
    tl.store(counts + to, found, mask=i < N)


@triton.jit
def search_kernel(
    q,
    k,
    bounds,
    scores_to,
    index_to,
    counts,
    order,
    lengths,
    scale,
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
    """Exactly the kept scores of one block of queries, by bisection: a pass over them a step.

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
    rows = token_rows(order, i, N, PACKED)
    to = head * N + rows
    want = _wanted(i, length, TOPK, CAUSAL)
    low = tl.full((QUERIES,), _LOWEST, tl.int32)
    unfit = want > 0
    if BOUNDED:
        found = tl.load(counts + to, mask=i < N, other=0)
        unfit = (found > C) | (found < want)
    if tl.max(unfit.to(tl.int32), 0) > 0:
        tile = load_rows(q + head * N * D, rows, i < length, D, D, DP)
        last = _limits(start, length, QUERIES, KEYS, CAUSAL)[1]
        if BOUNDED:
            low = _ordered(tl.load(bounds + to, mask=i < length, other=0.0))
        above = tl.zeros((QUERIES,), tl.int32)
        high = tl.where(want > 0, _NAN + 1, low + 1)
        # A step above the bound first: where many scores tie at it, the search is nearly over.
        middle = tl.where(want > 0, low + 4096, low)
        while tl.max((middle > low).to(tl.int32), 0) > 0:
            reached = tl.zeros((QUERIES,), tl.int32)
            for at in range(0, last, KEYS):
                scores, there = _scores(
                    tile, k, at, order, length, scale, N, D, DP, KEYS, PACKED, PRECISION
                )
                seen = _seen(i, at, length, KEYS, CAUSAL)
                reached += tl.sum((seen & (_ordered(scores) >= middle[:, None])).to(tl.int32), 1)
            enough = reached >= want
            above = tl.where(enough, above, reached)
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
            middle = _middle(low, high)
        tied = tl.zeros((QUERIES,), tl.int32)
        kept_before = tl.zeros((QUERIES,), tl.int32)
        for at in range(0, last, KEYS):
            scores, there = _scores(
                tile, k, at, order, length, scale, N, D, DP, KEYS, PACKED, PRECISION
            )
            seen = _seen(i, at, length, KEYS, CAUSAL)
            key = _ordered(scores)
            tie = (seen & (key == low[:, None])).to(tl.int32)
            rank = tied[:, None] + tl.cumsum(tie, 1)
            kept = (tie > 0) & (rank <= (want - above)[:, None])
            kept = kept | (seen & (key > low[:, None]))
            kept_before = _append(scores_to, index_to, scores, there, kept, to, kept_before, C)
            tied += tl.sum(tie, 1)
        tl.store(counts + to, kept_before, mask=i < N)
    elif not BOUNDED:
        tl.store(counts + to, tl.zeros((QUERIES,), tl.int32), mask=i < N)


@triton.jit
def keep_kernel(
    scores_from,
    index_from,
    counts,
    index_to,
    weights_to,
    P,
    TOPK,
    C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Cut the candidates of ROWS queries to k, ties to the lower key, and take their softmax.

    Keys come in ascending order; beyond those there are, the index is -1 and the weight 0.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = tl.arange(0, C)[None, :]
    count = tl.load(counts + row, mask=row < P, other=0)
    there = slot < count[:, None]
    scores = tl.load(scores_from + row[:, None] * C + slot, mask=there, other=float("-inf"))
    index = tl.load(index_from + row[:, None] * C + slot, mask=there, other=-1)
    key = _ordered(scores)
    want = tl.minimum(count, TOPK)

    low = tl.full((ROWS,), _LOWEST, tl.int32)
    high = tl.full((ROWS,), _NAN + 1, tl.int32)
    for _step in range(32):
        middle = _middle(low, high)
        enough = tl.sum((there & (key >= middle[:, None])).to(tl.int32), 1) >= want
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    above = there & (key > low[:, None])
    tie = (there & (key == low[:, None])).to(tl.int32)
    left = want - tl.sum(above.to(tl.int32), 1)
    kept = above | ((tie > 0) & (tl.cumsum(tie, 1) <= left[:, None]))

    peak = tl.max(tl.where(kept, scores, float("-inf")), 1)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    weights = tl.where(kept, tl.exp2((scores - base[:, None]) * 1.4426950408889634), 0.0)
    total = tl.sum(weights, 1)
    weights = weights / tl.where(total == 0.0, 1.0, total)[:, None]

    at = row[:, None] * TOPK
    to = at + tl.cumsum(kept.to(tl.int32), 1) - 1
    kept = kept & (row < P)[:, None]
    tl.store(index_to + to, index, mask=kept)
    tl.store(weights_to + to, weights, mask=kept)
    beyond = (slot >= want[:, None]) & (slot < TOPK) & (row < P)[:, None]
    tl.store(index_to + at + slot, tl.full((ROWS, C), -1, tl.int32), mask=beyond)
    tl.store(weights_to + at + slot, tl.zeros((ROWS, C), tl.float32), mask=beyond)

"""From the candidates of a query to its k keys, their weights and its output.

Inputs are contiguous; the output has strides. Shapes: H heads, GROUP query heads to a key head, N
tokens, D width of a head (DP padded), C slots of a query.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels import load_rows, store_rows, token_rows
from flashmix.ops.topk_attention.triton.kernels_gather import gather
from flashmix.ops.topk_attention.triton.kernels_scores import LOWEST, NAN, middle_of, ones, ordered


@triton.jit
def _expand(words, keys, order, count, at, N, C: tl.constexpr, PACKED: tl.constexpr):
    """Write where the keys stand that the ``count`` words at ``at`` [ROWS, 1] mark, in their
    order; how many there are."""
    slot = tl.arange(0, C)[None, :]
    entry = tl.load(words + at + slot, mask=slot < count[:, None], other=0)
    word = entry.to(tl.uint32)
    first = (entry >> 32).to(tl.int32)
    number = ones(word)
    to = tl.cumsum(number, 1) - number
    while tl.max(tl.max((word != 0).to(tl.int32), 1), 0) > 0:
        lowest = word & (~word + 1)
        # A power of two as float32 is its exponent.
        place = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        key = token_rows(order, first + place, N, PACKED).to(tl.int32)
        tl.store(keys + at + to, key, mask=word != 0)
        to += 1
        word = word ^ lowest
    return tl.sum(number, 1)


@triton.jit
def _choose(scores, there, want):
    """Which ``want`` of the scores that are ``there`` are the largest, ties to the first."""
    key = ordered(scores)
    low = tl.min(tl.where(there, key, NAN), 1)
    high = tl.max(tl.where(there, key, LOWEST), 1) + 1
    reached = tl.sum(there.to(tl.int32), 1)
    middle = middle_of(low, high)
    while tl.max(((reached > want) & (middle > low)).to(tl.int32), 0) > 0:
        number = tl.sum((there & (key >= middle[:, None])).to(tl.int32), 1)
        # A query that has exactly what it wants stays as it is.
        enough = (reached > want) & (number >= want)
        high = tl.where(number < want, middle, high)
        low = tl.where(enough, middle, low)
        reached = tl.where(enough, number, reached)
        middle = middle_of(low, high)
    above = there & (key > low[:, None])
    tie = (there & (key == low[:, None])).to(tl.int32)
    left = want - tl.sum(above.to(tl.int32), 1)
    return above | ((tie > 0) & (tl.cumsum(tie, 1) <= left[:, None]))


@triton.jit
def keep_kernel(
    q,
    k,
    v,
    words,
    counts,
    keys,
    scores_to,
    order,
    index_to,
    weights_to,
    y,
    y_b,
    y_h,
    y_n,
    scale,
    H,
    GROUP,
    N,
    TOPK,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    PACKED: tl.constexpr,
):
    """The k candidates of ROWS queries with the largest scores, their softmax and its output.

    Scores are summed in float32, again; STEP keys are read at a time. Kept keys come in ascending
    order; beyond those there are, the index is -1 and the weight 0.
    """
    blocks = tl.cdiv(N, ROWS)
    i = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // H, head % H
    own = (b * (H // GROUP) + h // GROUP) * N * D
    if PACKED:
        order += b * N
    rows = token_rows(order, i, N, PACKED)
    at = (head * N + i)[:, None] * C
    count = tl.load(counts + head * N + i, mask=i < N, other=0)
    total = _expand(words, keys, order, count, at, N, C, PACKED)
    tl.debug_barrier()

    query = load_rows(q + head * N * D, rows, i < N, D, D, DP).to(tl.float32)
    query = tl.where((total > 0)[:, None], query, 0.0)[:, None, :]
    for start in range(0, tl.max(total, 0), STEP):
        place = start + tl.arange(0, STEP)[None, :]
        inside = place < total[:, None]
        candidate = tl.load(keys + at + place, mask=inside, other=-1)
        # Adding zero makes -0 a +0, which ties with it.
        product = tl.sum(query * gather(k + own, candidate, D, D, DP), 2) * scale + 0.0
        tl.store(scores_to + at + place, product, mask=inside)
    tl.debug_barrier()

    slot = tl.arange(0, C)[None, :]
    there = slot < total[:, None]
    key = tl.load(keys + at + slot, mask=there, other=-1)
    score = tl.load(scores_to + at + slot, mask=there, other=float("-inf"))
    want = tl.minimum(total, TOPK)
    kept = _choose(score, there, want)

    peak = tl.max(tl.where(kept, score, float("-inf")), 1)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    weights = tl.where(kept, tl.exp2((score - base[:, None]) * 1.4426950408889634), 0.0)
    sum_ = tl.sum(weights, 1)
    weights = weights / tl.where(sum_ == 0.0, 1.0, sum_)[:, None]

    at = (head * N + rows)[:, None] * TOPK
    to = at + tl.cumsum(kept.to(tl.int32), 1) - 1
    tl.store(index_to + to, key, mask=kept)
    tl.store(weights_to + to, weights, mask=kept)
    beyond = (slot >= want[:, None]) & (slot < TOPK) & (i < N)[:, None]
    tl.store(index_to + at + slot, tl.full((ROWS, C), -1, tl.int32), mask=beyond)
    tl.store(weights_to + at + slot, tl.zeros((ROWS, C), tl.float32), mask=beyond)
    tl.debug_barrier()

    acc = tl.zeros((ROWS, STEP, DP), tl.float32)
    for start in range(0, tl.max(want, 0), STEP):
        place = start + tl.arange(0, STEP)[None, :]
        chosen = tl.load(index_to + at + place, mask=place < want[:, None], other=-1)
        share = tl.load(weights_to + at + place, mask=place < want[:, None], other=0.0)
        acc += share[:, :, None] * gather(v + own, chosen, D, D, DP)
    store_rows(y + b * y_b + h * y_h, rows, i < N, y_n, tl.sum(acc, 1), D, DP)

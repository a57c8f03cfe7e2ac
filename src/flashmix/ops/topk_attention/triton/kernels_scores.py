"""Scores of exact top-k in tiles, their order, and marks of those that are kept.

Marks are bits of words, so that what a score costs is a comparison and a bit. A word represents
KEYS / 4 keys in a row and is stored, where not zero, as int64: its first key above its bits.

Scores are not scaled here: what scales them is positive. Queries and keys count among the real
tokens. Shapes: N tokens, D width of a head (DP padded), C slots of a query.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flashmix.ops._triton.kernels import load_rows, token_rows

# Ordered integers of -inf and one that represents every NaN, which sorts above all.
LOWEST = tl.constexpr(-2139095041)
NAN = tl.constexpr(0x7FA00000)
UNFIT = tl.constexpr(-1)


@triton.jit
def ordered(scores):
    """float32 as int32 in the same order, NaN above all."""
    bits = scores.to(tl.int32, bitcast=True)
    return tl.where(scores == scores, bits ^ ((bits >> 31) & 0x7FFFFFFF), NAN)


@triton.jit
def unordered(key):
    """Undo :func:`ordered`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def middle_of(low, high):
    """The integer half way, rounded down, of two whose difference may overflow."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def ones(words):
    """How many bits of each uint32 are set, int32."""
    pairs = words - ((words >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    bytes_ = (fours + (fours >> 4)) & 0x0F0F0F0F
    return ((bytes_ * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def products(
    q,
    k,
    order,
    start,
    column,
    length,
    N,
    D: tl.constexpr,
    DP: tl.constexpr,
    WHOLE: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The scores of the keys at ``column`` from ``start``; all are real where WHOLE."""
    if PACKED or not WHOLE:
        j = start + column
        keys = load_rows(k, token_rows(order, j, N, PACKED), j < length, D, D, DP)
    else:
        # One 64-bit sum a tile: within it, offsets are the same in each step.
        keys = load_rows(k + tl.cast(start, tl.int64) * D, column, column >= 0, D, D, DP)
    return tl.dot(q, tl.trans(keys), input_precision=PRECISION)


@triton.jit
def dealt(KEYS: tl.constexpr):
    """Which key each column of a product takes, so that the quarters of :func:`quarters` lie
    within threads: tensor cores give each of four threads two columns in eight."""
    column = tl.arange(0, KEYS)
    return column // 2 % 4 * (KEYS // 4) + column // 8 * 2 + column % 2


@triton.jit
def quarters(scores, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Scores of dealt keys in the order of the keys, [QUERIES, 4, KEYS / 4]."""
    scores = tl.reshape(scores, (QUERIES, KEYS // 8, 4, 2))
    return tl.reshape(tl.permute(scores, (0, 2, 1, 3)), (QUERIES, 4, KEYS // 4))


@triton.jit
def tile_keys(start, KEYS: tl.constexpr):
    """The keys of a tile in quarters, [1, 4, KEYS / 4]."""
    part = tl.arange(0, 4)[:, None] * (KEYS // 4) + tl.arange(0, KEYS // 4)[None, :]
    return start + part[None, :, :]


@triton.jit
def visible(i, j, length, CAUSAL: tl.constexpr):
    """Which keys ``j`` the queries ``i`` may keep."""
    seen = (j < length) & (i < length)
    if CAUSAL:
        seen = seen & (j <= i)
    return seen


@triton.jit
def append(
    words_to,
    kept,
    start,
    there,
    words,
    bits,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    C: tl.constexpr,
):
    """Store the words of ``kept`` [QUERIES, 4, KEYS / 4] that are not zero behind the ``words``
    ones, for queries that are ``there``; how many there are then, and the number of their bits in
    each quarter."""
    bit = tl.full((KEYS // 4,), 1, tl.int32) << tl.arange(0, KEYS // 4)
    word = tl.sum(tl.where(kept, bit[None, None, :], 0), 2).to(tl.uint32, bitcast=True)
    quarter = tl.arange(0, 4)[None, :]
    present = (word != 0) & there[:, None]
    # A byte counts each quarter; a product with ones sums them.
    flags = tl.sum(present.to(tl.int32) << (quarter * 8), 1)
    before = flags[:, None] & ((tl.full((1, 4), 1, tl.int32) << (quarter * 8)) - 1)
    slot = words[:, None] + ((before * 0x01010101) >> 24)
    first = (start + quarter * (KEYS // 4)).to(tl.int64) << 32
    at = tl.arange(0, QUERIES)[:, None] * C + slot
    tl.store(words_to + at, first | word.to(tl.int64), mask=present & (slot < C))
    return words + ((flags * 0x01010101) >> 24), bits + tl.where(present, ones(word), 0)


@triton.jit
def limits(start, length, QUERIES: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr):
    """Up to where every query of the block sees all keys of a tile, and up to where any does."""
    last = tl.where(start < length, length, 0)
    whole = last
    if CAUSAL:
        whole = tl.minimum(last, start + 1)
        last = tl.minimum(last, start + QUERIES)
    return whole // KEYS * KEYS, last


@triton.jit
def wanted(i, length, TOPK, CAUSAL: tl.constexpr):
    """How many keys each query keeps; none at padding."""
    most = tl.minimum(i + 1, length) if CAUSAL else length
    return tl.where(i < length, tl.minimum(most, TOPK), 0)

"""Head exchange: each rank mixes whole sequences for its share of the heads.

The all-to-all of DeepSpeed-Ulysses (Jacobs et al. 2023), over the B * H pairs of a sequence and a
head rather than over heads alone, so that the number of ranks need not divide H.

Shapes: B batch, H heads, n own tokens, N all tokens, dh width of a head, U own pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashmix.parallel.comm.collectives import exchange
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.ranks import even_split, offsets_of
from flashmix.parallel.comm.volume import exchange_bytes


def mix_by_heads(run: Callable[..., Tensor], heads: tuple[Tensor, ...], layout: Layout) -> Tensor:
    """``run(*heads, mask)`` of all tokens, computed by each rank for its share of the pairs.

    Args:
        run: mixes heads: takes as many tensors [U, 1, N, dh] as ``heads`` holds and a mask [U, N]
            or None; returns [U, 1, N, dh].
        heads: q, k and v, or v alone, [B, H, n, dh] each.
        layout: of the tokens.

    Returns:
        [B, H, n, dh].
    """
    batch, count = heads[0].shape[:2]
    ranks, shares = layout.ranks, even_split(batch * count, layout.ranks.size)
    own = slice(offsets_of(shares)[ranks.rank], offsets_of(shares)[ranks.rank] + shares[ranks.rank])
    whole = [
        exchange(x.flatten(0, 1), ranks, (0, shares), layout.tokens(1)).unsqueeze(1) for x in heads
    ]
    mask = layout.mask
    if mask is not None:
        mask = mask.repeat_interleave(count, 0)[own]
    # A rank without pairs still takes part in every exchange, those of second derivatives too.
    y = run(*whole, mask) if shares[ranks.rank] else torch.stack(whole).sum(0).square()
    back = exchange(y.squeeze(1), ranks, layout.tokens(1), (0, shares))
    return back.unflatten(0, (batch, count))


def head_exchange_bytes(
    layout: Layout, rank: int, pairs: int, pair_bytes: int, inputs: int, backward: bool
) -> int:
    """Bytes that ``rank`` sends in :func:`mix_by_heads`.

    Args:
        layout: of the tokens.
        rank: the rank.
        pairs: B * H.
        pair_bytes: size of one token of one pair.
        inputs: how many tensors are exchanged for one result.
        backward: whether the backward is included.
    """
    shares = [pair_bytes * share for share in even_split(pairs, layout.ranks.size)]
    there, back = exchange_bytes(layout, rank, shares)
    forward = inputs * there + back
    return forward + there + inputs * back if backward else forward

"""Tokens for heads: each rank mixes the whole sequence for its share of the heads.

The head exchange of DeepSpeed-Ulysses (Jacobs et al. 2023), over the B * H pairs of a sequence and
a head rather than over heads alone, so that shares need not divide H.

Shapes: B batch, H heads, n own tokens, N all tokens, dh width of a head, U own pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashmix.parallel._collectives import exchange
from flashmix.parallel._layout import Layout
from flashmix.parallel._ranks import even_split, starts


def by_heads(run: Callable[..., Tensor], heads: tuple[Tensor, ...], layout: Layout) -> Tensor:
    """``run(*heads, mask)`` over all tokens, each rank for its share of the pairs.

    Args:
        run: takes what ``heads`` holds as [U, 1, N, dh] and a mask [U, N] or None; returns
            [U, 1, N, dh].
        heads: q, k, v or fewer of them, [B, H, n, dh] each.
        layout: of the tokens.

    Returns:
        [B, H, n, dh].
    """
    batch, count = heads[0].shape[:2]
    ranks, shares = layout.ranks, even_split(batch * count, layout.ranks.size)
    own = slice(starts(shares)[ranks.rank], starts(shares)[ranks.rank] + shares[ranks.rank])
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

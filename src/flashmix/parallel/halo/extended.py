"""Sliding-window attention of a slice that is extended by its halo, the tokens beyond its ends.

Shapes: B batch, H heads, n own tokens, N all tokens, S tokens of the extended slice, dh width of
a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.ops._padding import real_rank
from flashmix.parallel.comm.collectives import all_to_all
from flashmix.parallel.comm.layout import Layout

Index = tuple[slice, slice] | Tensor
"""A choice of tokens of a tensor [B, n, ...]: one range for all sequences, or a mask [B, n]."""


@dataclass(frozen=True)
class Halo:
    """The tokens of others that this rank needs, and those of its own that others need.

    Attributes:
        span: the extended slice: from the first token needed to the last, own tokens included.
        sent: for each rank, the own tokens that it gets.
        received: for each rank, the positions in the span of the tokens that it sends.
        counts: for each rank, the number of tokens that it sends, of all sequences together.
        mask: bool [B, S], the tokens of the span that are real and received; None where all are.
    """

    span: slice
    sent: list[Index]
    received: list[Index]
    counts: list[int]
    mask: Tensor | None


def halo_fits(reach: int, layout: Layout) -> bool:
    """Whether every slice has at least ``reach`` tokens, so that neighbours hold the halo."""
    return reach <= min(layout.counts)


def mix_with_halo(
    run: Callable[..., Tensor],
    heads: tuple[Tensor, Tensor, Tensor],
    reach: int,
    causal: bool,
    layout: Layout,
) -> Tensor:
    """The own rows [B, H, n, dh] of ``run(q, k, v, mask)`` of all tokens.

    Args:
        run: sliding-window attention, distances counted in real tokens.
        heads: q, k, v, [B, H, n, dh] each.
        reach: tokens that a query sees on each side.
        causal: whether later tokens are masked.
        layout: of the tokens.
    """
    q, k, v = heads
    halo = _plain(layout, reach, causal, len(q))
    if layout.mask is not None:
        halo = _padded(layout, layout.mask, reach, causal)
    left, count = layout.own.start - halo.span.start, q.shape[2]
    right = halo.span.stop - layout.own.stop

    tokens = torch.stack((k, v)).permute(1, 3, 0, 2, 4)  # [B, n, 2, H, dh]
    row = tokens[:1, :1].numel()
    parts = all_to_all(
        [tokens[index] for index in halo.sent], [n * row for n in halo.counts], layout.ranks
    )
    wide = F.pad(tokens, (0, 0, 0, 0, 0, 0, left, right))
    for index, part in zip(halo.received, parts, strict=True):
        wide[index] = part.view(wide[index].shape)
    k, v = wide.permute(2, 0, 3, 1, 4)
    y = run(F.pad(q, (0, 0, left, right)), k, v, halo.mask)
    return y[:, :, left : left + count]


def _plain(layout: Layout, reach: int, causal: bool, batch: int) -> Halo:
    """The halo where every token is real: one range for all sequences."""
    everything = slice(None)

    def span(rank: int) -> slice:
        own = layout.slice_of(rank)
        after = 0 if causal else reach
        return slice(max(0, own.start - reach), min(layout.total, own.stop + after))

    def needed(reader: int, holder: int) -> tuple[int, int]:
        wanted, held = span(reader), layout.slice_of(holder)
        if reader == holder:
            return held.start, held.start
        start = max(wanted.start, held.start)
        return start, max(start, min(wanted.stop, held.stop))

    me, every = layout.ranks.rank, range(layout.ranks.size)
    sent = [[x - layout.own.start for x in needed(rank, me)] for rank in every]
    come = [needed(me, rank) for rank in every]
    first = span(me).start
    return Halo(
        span=span(me),
        sent=[(everything, slice(a, b)) for a, b in sent],
        received=[(everything, slice(a - first, b - first)) for a, b in come],
        counts=[batch * (b - a) for a, b in come],
        mask=None,
    )


def _padded(layout: Layout, mask: Tensor, reach: int, causal: bool) -> Halo:
    """The halo where there is padding: the nearest real tokens of each sequence."""
    rank_of = real_rank(mask)
    me, every = layout.ranks.rank, range(layout.ranks.size)

    def needed(reader: int) -> Tensor:
        """The tokens of other ranks that a rank needs, bool [B, N]."""
        own = layout.slice_of(reader)
        first = mask[:, : own.start].sum(1, keepdim=True)
        behind = mask[:, : own.stop].sum(1, keepdim=True)
        near = (rank_of >= first - reach) & (rank_of < behind + (0 if causal else reach))
        near = near & mask & (behind > first)
        near[:, own] = False
        return near

    needs = [needed(rank) for rank in every]
    come = [needs[me][:, layout.slice_of(rank)] for rank in every]
    columns = needs[me].any(0)
    columns[layout.own] = True
    (places,) = columns.nonzero(as_tuple=True)
    bounds = torch.stack([places[0], places[-1] + 1, *(part.sum() for part in come)]).tolist()
    span = slice(bounds[0], bounds[1])
    here = needs[me].clone()
    here[:, layout.own] = mask[:, layout.own]
    index = []
    for rank in every:
        only = torch.zeros_like(mask)
        only[:, layout.slice_of(rank)] = come[rank]
        index.append(only[:, span])
    return Halo(
        span=span,
        sent=[need[:, layout.own] for need in needs],
        received=list(index),
        counts=bounds[2:],
        mask=here[:, span],
    )


def halo_bytes(side: int, rank: int, ranks: int, causal: bool, backward: bool) -> int:
    """Bytes that ``rank`` sends of a halo whose tokens on one side have ``side`` bytes."""
    before, after = rank > 0, rank < ranks - 1
    sent = after + (before and not causal)
    received = before + (after and not causal)
    return side * (sent + received if backward else sent)

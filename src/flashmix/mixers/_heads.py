"""Tokens by head, between projections that another module holds, and how they are split and merged.

Shapes: B batch, N tokens, D width, H heads, dh = D / H width of a head, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from flashmix.ops._packed import through_padding


class Heads(NamedTuple):
    """q, k and v by head, [B, H, N, dh] each, from projections that another module holds.

    A mixer that is called with them mixes alone; see :meth:`Mixer.mix_heads`.
    """

    q: Tensor
    k: Tensor
    v: Tensor


class AttentionHeads(NamedTuple):
    """q, k and v by head, and how they attend, for models that add to attention's own formula."""

    q: Tensor
    k: Tensor
    v: Tensor
    attend: Callable[[Any, Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """From the mixer, q, k, v and the mask to [B, N, D]."""


def attend_packed(
    mixer: Any, x: AttentionHeads, cu_seqlens: Tensor, max_seqlen: int | None = None
) -> Tensor:
    """``x.attend`` of packed heads, [T, H, dh]; they are padded for it, as a model has them."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        y = x.attend(mixer, q, k, v, mask)
        return y.unflatten(2, (q.shape[1], -1)).transpose(1, 2)

    return through_padding(attend, cu_seqlens, max_seqlen, x.q, x.k, x.v)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, dh] as [B, N, H * dh], and packed [T, H, dh] as [T, H * dh]."""
    return x.flatten(1) if x.dim() == 3 else x.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, width: int, counts: int | list[int]) -> tuple[Tensor, ...]:
    """[B, N, C] as parts [B, H, N, width] of ``counts`` heads each, packed [T, C] as [T, H, width].

    They are split where they lie, so that their gradients are put together by one copy.
    """
    parts = x.unflatten(-1, (-1, width)).split(counts, -2)
    return tuple(part.transpose(1, 2) for part in parts) if x.dim() == 3 else parts

"""Strategies of mixers with heads: whole sequences of some of the heads, or a ring."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from torch import Tensor

from flashmix.errors import ImplementationError
from flashmix.mixers import Attention, FourierAttention, QKVMixer
from flashmix.parallel.attention.heads import head_exchange_bytes, mix_by_heads
from flashmix.parallel.attention.ring import ring_attention, ring_bytes
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.strategy import Call, MixerStrategy

HeadMixer = TypeVar("HeadMixer", bound=QKVMixer | FourierAttention)


class HeadExchange(MixerStrategy[HeadMixer]):
    """Each rank mixes whole sequences for its share of the heads, by the mixer's ``mix_whole``."""

    replaces: ClassVar[tuple[str, ...]] = ()

    def mix(self, mixer: HeadMixer, inputs: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        return mix_by_heads(mixer.mix_whole, inputs, self.layout(inputs[0], mask, 2))

    def bytes_sent(self, mixer: HeadMixer, call: Call, layout: Layout, rank: int) -> int | None:
        pairs, pair_bytes = call.batch * mixer.num_heads, mixer.head_dim * call.dtype.itemsize
        inputs = len(mixer.reads)
        return head_exchange_bytes(layout, rank, pairs, pair_bytes, inputs, call.backward)


class AttentionStrategy(HeadExchange[Attention]):
    """Head exchange, or a ring where there are fewer pairs of sequence and head than ranks."""

    replaces = ("mix_whole",)

    def mix(self, mixer: Attention, inputs: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        layout, pairs = self.layout(inputs[0], mask, 2), inputs[0].shape[0] * inputs[0].shape[1]
        if not _uses_ring(pairs, layout):
            return mix_by_heads(mixer.mix_whole, inputs, layout)
        if mixer.impl not in ("auto", "torch", "sdpa"):
            raise ImplementationError(
                f"{self.where}: impl={mixer.impl!r} needs at least as many pairs of sequence and "
                f"head as ranks, {layout.ranks.size}, got {pairs}; use impl='auto'"
            )
        q, k, v = inputs
        return ring_attention(q, k, v, layout, mixer.causal)

    def bytes_sent(self, mixer: Attention, call: Call, layout: Layout, rank: int) -> int | None:
        if not _uses_ring(call.batch * mixer.num_heads, layout):
            return super().bytes_sent(mixer, call, layout, rank)
        block = 2 * call.batch * max(layout.counts) * call.dim
        return ring_bytes(block, call.dtype.itemsize, layout.ranks.size, call.backward)


def _uses_ring(pairs: int, layout: Layout) -> bool:
    return 0 < pairs < layout.ranks.size

"""The strategy of sliding-window attention."""

from __future__ import annotations

from torch import Tensor

from flashmix.mixers import LocalAttention
from flashmix.parallel.attention.heads import mix_by_heads
from flashmix.parallel.attention.strategy import HeadExchange
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.halo.ends import ends_are_disjoint, mix_ends_apart
from flashmix.parallel.halo.extended import halo_bytes, halo_fits, mix_with_halo
from flashmix.parallel.strategy import Call


class LocalStrategy(HeadExchange[LocalAttention]):
    """Keys and values in reach come from the neighbours; head exchange where slices are shorter."""

    replaces = ("mix_whole",)

    def mix(self, mixer: LocalAttention, inputs: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        layout, reach = self.layout(inputs[0], mask, 2), max(mixer.reach)
        run, causal = mixer.mix_whole, mixer.reach[1] == 0
        if not halo_fits(reach, layout):
            return mix_by_heads(run, inputs, layout)

        def extended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return mix_with_halo(run, (q, k, v), reach, causal, layout)

        q, k, v = inputs
        if ends_are_disjoint(reach, layout):
            return mix_ends_apart(run, extended, (q, k, v), reach, causal, layout)
        return extended(q, k, v)

    def bytes_sent(
        self, mixer: LocalAttention, call: Call, layout: Layout, rank: int
    ) -> int | None:
        reach = max(mixer.reach)
        if not halo_fits(reach, layout):
            return super().bytes_sent(mixer, call, layout, rank)
        side = 2 * call.batch * call.dim * call.dtype.itemsize * reach
        return halo_bytes(side, rank, layout.ranks.size, mixer.reach[1] == 0, call.backward)

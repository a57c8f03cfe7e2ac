"""The sharded form of each mixer: what travels between the ranks, and what runs on them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flashmix.errors import ImplementationError
from flashmix.mixers import (
    Attention,
    FNet,
    FourierAttention,
    Hybrid,
    LocalAttention,
    Spectral,
    TopKAttention,
)
from flashmix.mixers._base import Heads
from flashmix.ops import spectral
from flashmix.parallel.attention.heads import mix_by_heads
from flashmix.parallel.attention.ring import ring_attention
from flashmix.parallel.fnet import exchange as _fnet
from flashmix.parallel.halo.ends import ends_are_disjoint, mix_ends_apart
from flashmix.parallel.halo.extended import halo_fits, mix_with_halo
from flashmix.parallel.sharded import Sharded, ShardedModule, ShardedQKV
from flashmix.parallel.spectral import modes as _spectral
from flashmix.parallel.spectral.channels import filter_by_channels


class ShardedAttention(ShardedQKV, Attention):
    """Tokens for heads where there are pairs of sequence and head for all ranks, else a ring."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        layout, pairs = self.layout(q, mask, 2), q.shape[0] * q.shape[1]
        if pairs >= self.ranks.size or not pairs:
            return mix_by_heads(super().mix, (q, k, v), layout)
        if self.impl not in ("auto", "torch", "sdpa"):
            raise ImplementationError(
                f"{self.where}: impl={self.impl!r} needs at least as many pairs of sequence and "
                f"head as ranks, {self.ranks.size}, not {pairs}; use impl='auto'"
            )
        return ring_attention(q, k, v, layout, self.causal)


class ShardedLocal(ShardedQKV, LocalAttention):
    """The keys beyond the ends of the slice; tokens for heads where a slice is shorter."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        layout, reach = self.layout(q, mask, 2), self.window // 2
        run = super().mix
        if not halo_fits(reach, layout):
            return mix_by_heads(run, (q, k, v), layout)

        def extended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return mix_with_halo(run, (q, k, v), reach, self.causal, layout)

        if ends_are_disjoint(reach, layout):
            return mix_ends_apart(run, extended, (q, k, v), reach, self.causal, layout)
        return extended(q, k, v)


class ShardedTopK(ShardedQKV, TopKAttention):
    """Tokens for heads: each rank chooses among all keys, for its share of the heads."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return mix_by_heads(super().mix, (q, k, v), self.layout(q, mask, 2))


class ShardedFNet(Sharded, FNet):
    """Tokens for columns of the spectrum, and back."""

    @classmethod
    def check_supported(cls, module: Any, place: str) -> None:
        if module.impl not in ("auto", "torch"):
            raise ImplementationError(
                f"{place}: impl={module.impl!r} has no form for a sequence across ranks; use "
                "impl='auto'"
            )

    def forward(self, x: Tensor | Heads, mask: Tensor | None = None) -> Tensor:
        x = self.tokens(x, mask)
        return _fnet.fnet(x, self.layout(x, mask, 1), self.norm)


class ShardedSpectral(Sharded, Spectral):
    """A sum of the modes across the ranks where they are few, else tokens for channels.

    An explicit ``impl`` runs on whole columns.
    """

    sums_gradients = True

    def forward(self, x: Tensor | Heads, mask: Tensor | None = None) -> Tensor:
        x = self.tokens(x, mask)
        layout, whole = self.layout(x, mask, 1), self.sum_gradients
        if self.impl == "auto" and not self.causal and _spectral.few_modes(self.modes, layout):
            return _spectral.filter_by_modes(
                x, self.filter(), self.bias, self.unitary, layout, whole
            )

        def run(columns: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return spectral(
                columns,
                weight,
                bias,
                mask=layout.mask,
                causal=self.causal,
                context=self.context,
                unitary=self.unitary,
                impl=self.impl,
            )

        return filter_by_channels(run, x, self.filter(), self.bias, layout, whole)


class ShardedFourier(Sharded, FourierAttention):
    """Tokens for heads."""

    def forward(
        self, x: Tensor | Heads, mask: Tensor | None = None, *, return_weights: bool = False
    ) -> Any:
        """As the mixer's own, without weights."""
        if return_weights:
            raise self.weights_error()
        return super().forward(x, mask)

    def mix(self, v: Tensor, mask: Tensor | None) -> Tensor:
        return mix_by_heads(super().mix, (v,), self.layout(v, mask, 2))

    def magnitude(self, x: Tensor) -> Tensor:
        """Raise ImplementationError: no rank holds all tokens."""
        raise self.weights_error()


class ShardedHybrid(Sharded, Hybrid):
    """Its parts are sharded, each in its own way."""


MIXERS: dict[type[nn.Module], type[ShardedModule]] = {
    Attention: ShardedAttention,
    LocalAttention: ShardedLocal,
    TopKAttention: ShardedTopK,
    FNet: ShardedFNet,
    Spectral: ShardedSpectral,
    FourierAttention: ShardedFourier,
    Hybrid: ShardedHybrid,
}

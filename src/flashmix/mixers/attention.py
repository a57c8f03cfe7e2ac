"""Full softmax attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from torch import Tensor

from flashmix.mixers._base import QKVMixer
from flashmix.mixers._weights import check_weights_impl
from flashmix.mixers.config import QKVConfig
from flashmix.mixers.declaration import Benchmarks
from flashmix.mixers.registration import register_mixer
from flashmix.ops import attention
from flashmix.ops._packed import Lengths
from flashmix.ops.attention.reference import attention_and_weights


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(QKVConfig):
    """The options of :class:`Attention`."""

    name = "attention"
    op = "attention"


@register_mixer
class Attention(QKVMixer):
    """Multi-head softmax attention (Vaswani et al. 2017, section 3.2.2).

    Args:
        dim: width D.
        num_heads: heads H, a divisor of ``dim``; heads of width 64 by default.
        num_kv_heads: heads of k and v, a divisor of H, each shared by neighbouring heads of q; H
            by default.
        causal: token i sees tokens j <= i only.
        bias: whether the four projections have one.
        impl: "auto", or a name of :func:`flashmix.ops.attention`'s.
    """

    summary = "softmax(q k^T / sqrt(dh)) v: every token sees every token"
    cost = "O(N^2)"
    Config = AttentionConfig
    sharding_strategy = "flashmix.parallel.attention.strategy:AttentionStrategy"
    colour = "#1c1e22", "#f3f4f7"
    benchmarks = Benchmarks(  # elsewhere it is the baseline
        digits="attention",
        parallel="attention",
        longest_sharded=(("cpu", 2048), ("cuda", 131072)),
    )
    grouped = False

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        num_kv_heads: int | None = None,
        causal: bool = False,
        bias: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            AttentionConfig(
                dim=dim,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                causal=causal,
                bias=bias,
                impl=impl,
            )
        )

    def mix_whole(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **lengths: Unpack[Lengths]
    ) -> Tensor:
        return attention(q, k, v, mask=mask, causal=self.causal, impl=self.impl, **lengths)

    def mix_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        check_weights_impl("Attention", self.impl)
        return attention_and_weights(q, k, v, mask, self.causal)

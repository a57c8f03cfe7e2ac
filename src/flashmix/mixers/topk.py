"""Top-k attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Unpack

from torch import Tensor

from flashmix.mixers._base import QKVMixer
from flashmix.mixers._weights import check_weights_impl
from flashmix.mixers.config import QKVConfig
from flashmix.mixers.declaration import Benchmarks
from flashmix.mixers.registration import register_mixer
from flashmix.ops import _checks, topk_attention
from flashmix.ops._packed import Lengths
from flashmix.ops.block_topk_attention.reference import block_topk_attention_and_weights
from flashmix.ops.topk_attention.reference import topk_attention_and_weights


@dataclass(frozen=True, kw_only=True)
class TopKAttentionConfig(QKVConfig):
    """The options of :class:`TopKAttention`."""

    name = "topk"
    op = "topk_attention"

    topk: int = 32
    selection: Literal["exact", "block"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.check_count(self.where, "topk", self.topk)
        _checks.check_choice(self.where, "selection", self.selection, ("exact", "block"))

    def operations(self, seq_len: int) -> float:
        return 4 * super().operations(seq_len)  # to choose, too


@register_mixer
class TopKAttention(QKVMixer):
    """Attention to the ``topk`` tokens with the largest scores, for each query and head.

    Args:
        dim: width D.
        topk: tokens kept, >= 1; all of them where there are fewer.
        selection: "exact", or "block", which keeps whole blocks of 64 tokens by the score of
            their means and so approximates; see :func:`flashmix.ops.topk_attention`.
        num_heads: heads H, a divisor of ``dim``; heads of width 64 by default.
        num_kv_heads: heads of k and v, a divisor of H, each shared by neighbouring heads of q; H
            by default.
        causal: token i sees tokens j <= i only.
        bias: whether the four projections have one.
        impl: "auto", or a name of :func:`flashmix.ops.topk_attention`'s.
    """

    summary = "attention to the topk tokens with the largest scores"
    cost = "O(N^2) to choose, O(N * topk) to mix"
    Config = TopKAttentionConfig
    sharding_strategy = "flashmix.parallel:HeadExchange"
    colour = "#c12647", "#c33a38"
    benchmarks = Benchmarks(
        quick="topk",
        digits="topk(topk=8)",
        swap="topk(topk=32)",
        efficient="topk(topk=32)",
        parallel="topk",
        longest_sharded=(("cpu", 2048), ("cuda", 16384)),
    )
    topk: int
    selection: Literal["exact", "block"]

    def __init__(
        self,
        dim: int,
        *,
        topk: int = 32,
        selection: Literal["exact", "block"] = "exact",
        num_heads: int | None = None,
        num_kv_heads: int | None = None,
        causal: bool = False,
        bias: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            TopKAttentionConfig(
                dim=dim,
                topk=topk,
                selection=selection,
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
        return topk_attention(
            q,
            k,
            v,
            topk=self.topk,
            selection=self.selection,
            mask=mask,
            causal=self.causal,
            impl=self.impl,
            **lengths,
        )

    def mix_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        check_weights_impl("TopKAttention", self.impl)
        with_weights = (
            topk_attention_and_weights
            if self.selection == "exact"
            else block_topk_attention_and_weights
        )
        return with_weights(q, k, v, mask, self.topk, self.causal)

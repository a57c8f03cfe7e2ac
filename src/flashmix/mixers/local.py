"""Sliding-window attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from torch import Tensor

from flashmix.mixers._base import QKVMixer
from flashmix.mixers._weights import check_weights_impl
from flashmix.mixers.config import QKVConfig
from flashmix.mixers.declaration import Benchmarks
from flashmix.mixers.registration import register_mixer
from flashmix.ops import local_attention
from flashmix.ops._packed import Lengths
from flashmix.ops.local_attention.reference import local_attention_and_weights
from flashmix.ops.local_attention.window import Window, check_window, keys_in_view, reach


@dataclass(frozen=True, kw_only=True)
class LocalAttentionConfig(QKVConfig):
    """The options of :class:`LocalAttention`."""

    name = "local"
    op = "local_attention"

    window: Window = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.window, list):
            self._resolve(window=tuple(self.window))
        check_window(self.where, self.window)

    def operations(self, seq_len: int) -> float:
        return 12.0 * self.dim * keys_in_view(self.window)


@register_mixer
class LocalAttention(QKVMixer):
    """Attention to the tokens in a window around each, distances in real tokens.

    The pattern of Beltagy et al. 2020 (Longformer), section 3.1.

    Args:
        dim: width D.
        window: an integer w >= 1: token i sees those with abs(i - j) <= w // 2, and with ``causal``
            the last w, itself among them. Or a pair (left, right): i - left <= j <= i + right.
        num_heads: heads H, a divisor of ``dim``; heads of width 64 by default.
        num_kv_heads: heads of k and v, a divisor of H, each shared by neighbouring heads of q; H
            by default.
        causal: token i sees tokens j <= i only.
        bias: whether the four projections have one.
        impl: "auto", or a name of :func:`flashmix.ops.local_attention`'s.
    """

    summary = "attention to the tokens in a window around each"
    cost = "O(N * window)"
    Config = LocalAttentionConfig
    sharding_strategy = "flashmix.parallel.halo.strategy:LocalStrategy"
    colour = "#d8730d", "#d78446"
    benchmarks = Benchmarks(
        quick="local",
        digits="local(window=16)",
        swap="local(window=64)",
        efficient="local(window=32)",
        parallel="local",
        longest_sharded=(("cpu", 16384),),
    )
    window: Window

    def __init__(
        self,
        dim: int,
        *,
        window: Window = 128,
        num_heads: int | None = None,
        num_kv_heads: int | None = None,
        causal: bool = False,
        bias: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            LocalAttentionConfig(
                dim=dim,
                window=window,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                causal=causal,
                bias=bias,
                impl=impl,
            )
        )

    @property
    def reach(self) -> tuple[int, int]:
        """How many tokens before and after itself a token sees."""
        return reach(self.window, self.causal)

    def mix_whole(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **lengths: Unpack[Lengths]
    ) -> Tensor:
        return local_attention(
            q, k, v, window=self.window, mask=mask, causal=self.causal, impl=self.impl, **lengths
        )

    def mix_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        check_weights_impl("LocalAttention", self.impl)
        return local_attention_and_weights(q, k, v, mask, *self.reach)

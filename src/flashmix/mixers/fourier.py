"""Fourier attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn

from flashmix.errors import ImplementationError
from flashmix.mixers._base import WeighingMixer
from flashmix.mixers._heads import Heads, merge_heads, split_heads
from flashmix.mixers._weights import no_packed_weights
from flashmix.mixers.config import BUILT_ONLY, MixerConfig, head_count
from flashmix.mixers.declaration import Benchmarks
from flashmix.mixers.registration import register_mixer
from flashmix.ops import _checks, fourier, fourier_weights
from flashmix.ops._packed import Lengths
from flashmix.ops._padding import zero_padding
from flashmix.ops._precision import transform_dtype


@dataclass(frozen=True, kw_only=True)
class FourierAttentionConfig(MixerConfig):
    """The options of :class:`FourierAttention`."""

    name = "fourier"
    op = "fourier"

    num_heads: int | None = None
    bias: bool = field(default=True, metadata=BUILT_ONLY)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._resolve(num_heads=head_count(self.where, self.dim, self.num_heads))
        _checks.check_flag(self.where, "bias", self.bias)


@register_mixer
class FourierAttention(WeighingMixer):
    """Each head's frequencies weighed by their share of its power, between two projections.

    :func:`flashmix.ops.fourier` on v = in-projection of x, then the out-projection. The weights
    depend on the data; there is no query or key.

    Args:
        dim: width D.
        num_heads: heads H, a divisor of ``dim``; heads of width 64 by default.
        bias: whether the two projections have one.
        impl: "auto", or a name of :func:`flashmix.ops.fourier`'s.
    """

    summary = "each head's frequencies weighed by their share of its power"
    cost = "O(N log N)"
    Config = FourierAttentionConfig
    sharding_strategy = "flashmix.parallel:HeadExchange"
    pictures = frozenset({"weights", "gains"})
    colour = "#8831b2", "#9558bc"
    benchmarks = Benchmarks(
        quick="fourier",
        digits="fourier",
        swap="fourier",
        parallel="fourier",
        longest_sharded=(("cpu", 16384),),
    )
    num_heads: int
    reads = "v"

    def __init__(
        self, dim: int, *, num_heads: int | None = None, bias: bool = True, impl: str = "auto"
    ) -> None:
        super().__init__(FourierAttentionConfig(dim=dim, num_heads=num_heads, bias=bias, impl=impl))
        self.head_dim = dim // self.num_heads
        self.value = nn.Linear(dim, dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def heads(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """v, the in-projection of ``x`` by head, [B, H, N, dh]; under tensor parallelism its own.

        Raises:
            ImplementationError: a shard of ``value`` cuts a head in two.
        """
        v = self.value(zero_padding(x, mask))
        if v.shape[-1] % self.head_dim:
            raise ImplementationError(
                f"FourierAttention: value gave {v.shape[-1]} channels, which are not whole heads "
                f"of width {self.head_dim}; num_heads = {self.num_heads} must be a multiple of the "
                "ranks of tensor parallelism"
            )
        (v,) = split_heads(v, self.head_dim, v.shape[-1] // self.head_dim)
        return v

    def forward(
        self,
        x: Tensor | Heads,
        mask: Tensor | None = None,
        *,
        return_weights: bool = False,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Any:
        """Mix the tokens of ``x`` [B, N, D], or ``v`` of :class:`Heads` alone.

        With ``return_weights`` also returns the weights [B, H, N // 2 + 1], which sum to one over
        the frequencies of a sequence.
        """
        if cu_seqlens is not None or max_seqlen is not None:
            lengths = self.check_packed(x, mask, cu_seqlens, max_seqlen)
            if return_weights:
                raise no_packed_weights(type(self).__name__)
            if isinstance(x, Heads):
                return merge_heads(self.mix_whole(x.v, None, **lengths))
            return self.out(merge_heads(self.mix_whole(self.heads(x, None), None, **lengths)))
        if isinstance(x, Heads):
            return merge_heads(self.mix(x.v, mask))
        self.check(x, mask)
        if return_weights:
            self.check_all_tokens("weights")
        v = self.heads(x, mask)
        y = zero_padding(self.out(merge_heads(self.mix(v, mask))), mask)
        return (y, fourier_weights(v, mask=mask)) if return_weights else y

    def mix(self, v: Tensor, mask: Tensor | None) -> Tensor:
        """Mix heads, [B, H, N, dh], or this rank's slice of them."""
        if self.sharding is not None:
            return self.sharding.mix(self, (v,), mask)
        return self.mix_whole(v, mask)

    def mix_whole(self, v: Tensor, mask: Tensor | None, **lengths: Unpack[Lengths]) -> Tensor:
        """Mix heads of whole sequences, [B, H, N, dh]."""
        return fourier(v, mask=mask, impl=self.impl, **lengths)

    def drop_projections(self) -> Self:
        del self.value, self.out
        return self

    def magnitude(self, x: Tensor) -> Tensor:
        """abs(rfft(v over tokens)) of unpadded ``x`` [B, N, D], as [B, H, N // 2 + 1, dh]."""
        self.check_all_tokens("magnitudes")
        self.check(x, None)
        v = self.heads(x, None)
        return torch.fft.rfft(v.to(transform_dtype(v.dtype)), dim=2).abs()

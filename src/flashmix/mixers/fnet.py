"""FNet mixing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Unpack

from torch import Tensor

from flashmix.mixers._base import Mixer
from flashmix.mixers._heads import Heads, merge_heads
from flashmix.mixers.config import MixerConfig
from flashmix.mixers.declaration import Benchmarks
from flashmix.mixers.registration import register_mixer
from flashmix.ops import _checks, fnet
from flashmix.ops._packed import Lengths


@dataclass(frozen=True, kw_only=True)
class FNetConfig(MixerConfig):
    """The options of :class:`FNet`."""

    name = "fnet"
    op = "fnet"

    norm: Literal["backward", "ortho"] = "backward"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.check_choice(self.where, "norm", self.norm, ("backward", "ortho"))


@register_mixer
class FNet(Mixer):
    """Re(FFT over tokens of FFT over width), no parameters (Lee-Thorp et al. 2021, eq. 3).

    Args:
        dim: width D.
        norm: "backward" leaves the sums unnormalised as the paper does; "ortho" divides by
            sqrt(N * D), which float16 models need.
        impl: "auto", or a name of :func:`flashmix.ops.fnet`'s.
    """

    summary = "Re(FFT over tokens of FFT over width): fixed, no parameters"
    cost = "O(N log N)"
    Config = FNetConfig
    sharding_strategy = "flashmix.parallel.fnet.strategy:FNetStrategy"
    pictures = frozenset({"impulse"})
    colour = "#1e68eb", "#5e95f1"
    benchmarks = Benchmarks(quick="fnet", digits="fnet", swap="fnet", parallel="fnet")
    norm: Literal["backward", "ortho"]

    def __init__(
        self, dim: int, *, norm: Literal["backward", "ortho"] = "backward", impl: str = "auto"
    ) -> None:
        super().__init__(FNetConfig(dim=dim, norm=norm, impl=impl))

    def forward(
        self,
        x: Tensor | Heads,
        mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        if cu_seqlens is not None or max_seqlen is not None:
            lengths = self.check_packed(x, mask, cu_seqlens, max_seqlen)
            return self.mix_whole(merge_heads(x.v) if isinstance(x, Heads) else x, None, **lengths)
        return self.mix(self.tokens(x, mask), mask)

    def mix(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Mix tokens [B, N, D], or this rank's slice of them."""
        if self.sharding is not None:
            return self.sharding.mix(self, (x,), mask)
        return self.mix_whole(x, mask)

    def mix_whole(self, x: Tensor, mask: Tensor | None, **lengths: Unpack[Lengths]) -> Tensor:
        """Mix whole sequences [B, N, D]."""
        return fnet(x, mask=mask, norm=self.norm, impl=self.impl, **lengths)

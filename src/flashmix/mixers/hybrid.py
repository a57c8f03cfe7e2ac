"""Several mixers in one layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError
from flashmix.mixers._base import Mixer
from flashmix.mixers._heads import Heads
from flashmix.mixers.config import BUILT_ONLY, MixerConfig, head_count
from flashmix.mixers.declaration import Benchmarks
from flashmix.mixers.registration import register_mixer
from flashmix.mixers.spec import parse_mixer
from flashmix.ops import _checks
from flashmix.ops._packed import Lengths
from flashmix.ops._padding import zero_padding


@dataclass(frozen=True, kw_only=True)
class HybridConfig(MixerConfig):
    """The options of :class:`Hybrid`, whose ``mixers`` are configs once it is made."""

    name = "hybrid"

    mixers: Sequence[str | MixerConfig | Mapping[str, Any]] = field(
        default=("spectral", "local"), metadata=BUILT_ONLY
    )
    combine: Literal["sum", "gate", "heads"] = "sum"
    num_heads: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.check_choice(self.where, "combine", self.combine, ("sum", "gate", "heads"))
        mixers = self.mixers
        if not isinstance(mixers, list | tuple) or len(mixers) < 2:
            raise ArgumentError(
                f"Hybrid: mixers must be at least two names, got {mixers!r}; "
                "for example ('spectral', 'local')"
            )
        heads = head_count(self.where, self.dim, self.num_heads)
        self._resolve(num_heads=heads)
        width = self.dim
        if self.combine == "heads":
            if width % len(mixers) or heads % len(mixers):
                raise ArgumentError(
                    f"Hybrid: combine='heads' shares dim = {width} and num_heads = {heads} among "
                    f"{len(mixers)} mixers; both must be multiples of it"
                )
            width, heads = width // len(mixers), heads // len(mixers)
        self._resolve(mixers=tuple(self._part(one, width, heads) for one in mixers))

    def operations(self, seq_len: int) -> float:
        parts = cast("Sequence[MixerConfig]", self.mixers)
        return sum(part.operations(seq_len) for part in parts)

    def _part(self, mixer: str | MixerConfig | Mapping[str, Any], dim: int, heads: int) -> Any:
        """The config of a part that is ``dim`` wide."""
        if isinstance(mixer, Mapping):
            mixer = MixerConfig.from_dict(mixer)
        if not isinstance(mixer, MixerConfig):
            return parse_mixer(mixer).config(dim, num_heads=heads, impl=self.impl)
        if mixer.dim != dim:
            raise ArgumentError(f"Hybrid: a mixer of it must have dim = {dim}, got {mixer.dim}")
        return mixer


@register_mixer
class Hybrid(Mixer):
    """Several mixers side by side in one layer, ``spectral`` and ``local`` by default.

    Args:
        dim: width D.
        mixers: at least two names, with options where wanted: ("spectral", "local(window=64)"); or
            configs.
        combine: "sum" adds the outputs; "gate" adds them with learned weights, a softmax over the
            mixers for each channel that starts even; "heads" gives each mixer an equal share of
            the width, as heads of different kinds.
        num_heads: heads H of the mixers that have them; for "heads", of the whole layer.
        impl: passed on to every mixer.
    """

    summary = "several mixers in one layer, spectral + local by default"
    cost = "the sum of its parts"
    Config = HybridConfig
    sharding_strategy = "flashmix.parallel.strategies:HybridStrategy"
    colour = "#4a4703", "#efbb32"
    benchmarks = Benchmarks(quick="spectral+local", digits="spectral+local(window=16)")
    combine: Literal["sum", "gate", "heads"]
    num_heads: int

    def __init__(
        self,
        dim: int,
        *,
        mixers: Sequence[str | MixerConfig | Mapping[str, Any]] = ("spectral", "local"),
        combine: Literal["sum", "gate", "heads"] = "sum",
        num_heads: int | None = None,
        impl: str = "auto",
    ) -> None:
        config = HybridConfig(
            dim=dim, mixers=mixers, combine=combine, num_heads=num_heads, impl=impl
        )
        super().__init__(config)
        parts = cast("Sequence[MixerConfig]", config.mixers)
        self.mixers = nn.ModuleList(part.build() for part in parts)
        self.reads = "".join(p for p in "qkv" if any(p in m.reads for m in self._parts()))
        linear = all("impulse" in part.pictures for part in self._parts())
        self.pictures = frozenset({"impulse"}) if linear else frozenset()
        if combine == "gate":
            self.gate = nn.Parameter(torch.empty(len(parts), dim))
            self.reset_parameters()

    @property
    def config(self) -> MixerConfig:
        mixers = tuple(part.config for part in self._parts())
        return dataclasses.replace(super().config, mixers=mixers)  # type: ignore[call-arg]

    def reset_parameters(self) -> None:
        """An even gate; the parts have their own parameters."""
        if self.combine == "gate":
            nn.init.zeros_(self.gate)

    def forward(
        self,
        x: Tensor | Heads,
        mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        if isinstance(x, Heads):
            self._check_heads(x)
        lengths: Lengths = {}
        if cu_seqlens is not None or max_seqlen is not None:
            lengths = self.check_packed(x, mask, cu_seqlens, max_seqlen)
        elif not isinstance(x, Heads):
            self.check(x, mask)
        shares = zip(self.mixers, self._shares(x), strict=True)
        outputs = [m(share, mask, **lengths) for m, share in shares]
        return self._combine(outputs, mask)

    def drop_projections(self) -> Self:
        for mixer in self._parts():
            mixer.drop_projections()
        return self

    def _parts(self) -> Sequence[Mixer]:
        return cast("Sequence[Mixer]", self.mixers)

    def _check_heads(self, heads: Heads) -> None:
        """Raise ArgumentError unless all heads are there, of which each part mixes its own."""
        count, width = heads.v.shape[1], heads.v.shape[-1]
        if count * width != self.dim:
            raise ArgumentError(
                f"Hybrid: its heads must fill dim = {self.dim}, got {count} of width {width}; "
                "under tensor parallelism keep the projections around a hybrid whole"
            )

    def _shares(self, x: Tensor | Heads) -> Sequence[Tensor | Heads]:
        """What each mixer gets of ``x``: its share of the width or heads, or all of it."""
        parts = len(self.mixers)
        if self.combine != "heads":
            return [x] * parts
        if isinstance(x, Heads):
            return [Heads(*part) for part in zip(*(t.chunk(parts, 1) for t in x), strict=True)]
        return x.chunk(parts, -1)

    def _combine(self, outputs: list[Tensor], mask: Tensor | None) -> Tensor:
        if self.combine == "heads":
            return torch.cat(outputs, -1)
        stacked = torch.stack(outputs)
        if self.combine == "sum":
            return stacked.sum(0)
        share = self.gate.softmax(0).unflatten(0, (-1, *[1] * (stacked.dim() - 2)))
        return zero_padding((stacked * share).sum(0).to(stacked.dtype), mask)

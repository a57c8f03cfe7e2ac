"""Several mixers in one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError
from flashmix.mixers._base import Heads, Mixer, head_count
from flashmix.mixers.spec import parse_mixer
from flashmix.ops import _checks
from flashmix.ops._padding import zero_padding


class Hybrid(Mixer):
    """Several mixers side by side in one layer, ``spectral`` and ``local`` by default.

    Args:
        dim: width D.
        mixers: at least two names, with options where wanted: ("spectral", "local(window=64)").
        combine: "sum" adds the outputs; "gate" adds them with learned weights, a softmax over the
            mixers for each channel that starts even; "heads" gives each mixer an equal share of
            the width, as heads of different kinds.
        num_heads: heads H of the mixers that have them; for "heads", of the whole layer.
        impl: passed on to every mixer.
    """

    summary = "several mixers in one layer, spectral + local by default"
    cost = "the sum of its parts"

    def __init__(
        self,
        dim: int,
        *,
        mixers: Sequence[str] = ("spectral", "local"),
        combine: Literal["sum", "gate", "heads"] = "sum",
        num_heads: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(dim)
        _checks.check_choice("Hybrid", "combine", combine, ("sum", "gate", "heads"))
        if not isinstance(mixers, list | tuple) or len(mixers) < 2:
            raise ArgumentError(
                f"Hybrid: mixers must be at least two names, got {mixers!r}; "
                "for example ('spectral', 'local')"
            )
        self.combine = combine
        heads = head_count("Hybrid", dim, num_heads)
        width = dim
        if combine == "heads":
            if dim % len(mixers) or heads % len(mixers):
                raise ArgumentError(
                    f"Hybrid: combine='heads' shares dim = {dim} and num_heads = {heads} among "
                    f"{len(mixers)} mixers; both must be multiples of it"
                )
            width, heads = dim // len(mixers), heads // len(mixers)
        self.mixers = nn.ModuleList(
            parse_mixer(text).build(width, num_heads=heads, impl=impl) for text in mixers
        )
        self.reads = "".join(p for p in "qkv" if any(p in m.reads for m in self._parts()))
        if combine == "gate":
            self.gate = nn.Parameter(torch.empty(len(mixers), dim))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """An even gate; the parts have their own parameters."""
        if self.combine == "gate":
            nn.init.zeros_(self.gate)

    def forward(self, x: Tensor | Heads, mask: Tensor | None = None) -> Tensor:
        if isinstance(x, Heads):
            self._check_heads(x)
        else:
            self.check(x, mask)
        outputs = [m(share, mask) for m, share in zip(self.mixers, self._shares(x), strict=True)]
        return self._combine(outputs, mask)

    def drop_projections(self) -> Self:
        for mixer in self._parts():
            mixer.drop_projections()
        return self

    def _parts(self) -> Sequence[Mixer]:
        return cast("Sequence[Mixer]", self.mixers)

    def _check_heads(self, heads: Heads) -> None:
        """Raise ArgumentError unless all heads are there, of which each part mixes its own."""
        _, count, _, width = heads.v.shape
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
        share = self.gate.softmax(0)[:, None, None]
        return zero_padding((stacked * share).sum(0).to(stacked.dtype), mask)

"""Several mixers in one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError
from flashmix.mixers._base import Mixer, head_count
from flashmix.mixers.spec import parse_mixer
from flashmix.ops import _checks
from flashmix.ops._padding import zero_padding

Heads = tuple[Tensor, Tensor, Tensor]


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
            self.gate = nn.Parameter(torch.zeros(len(mixers), dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.check(x, mask)
        shares = self._shares(x, dim=-1)
        outputs = [m(share, mask) for m, share in zip(self._parts(), shares, strict=True)]
        return self._combine(outputs, mask)

    def mix_heads(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        shares = zip(*(self._shares(heads, dim=1) for heads in (q, k, v)), strict=True)
        outputs = [
            m.mix_heads(*heads, mask)
            for m, heads in zip(self._parts(), cast("list[Heads]", list(shares)), strict=True)
        ]
        return self._combine(outputs, mask)

    def drop_projections(self) -> Self:
        for mixer in self._parts():
            mixer.drop_projections()
        return self

    def _parts(self) -> Sequence[Mixer]:
        return cast("Sequence[Mixer]", self.mixers)

    def _shares(self, x: Tensor, dim: int) -> Sequence[Tensor]:
        """What each mixer gets of ``x``: its share of the width or heads, or all of it."""
        parts = len(self.mixers)
        return x.chunk(parts, dim) if self.combine == "heads" else [x] * parts

    def _combine(self, outputs: list[Tensor], mask: Tensor | None) -> Tensor:
        if self.combine == "heads":
            return torch.cat(outputs, -1)
        stacked = torch.stack(outputs)
        if self.combine == "sum":
            return stacked.sum(0)
        share = self.gate.softmax(0)[:, None, None]
        return zero_padding((stacked * share).sum(0).to(stacked.dtype), mask)

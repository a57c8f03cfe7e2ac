"""Learnable spectral filtering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError
from flashmix.mixers._base import Mixer
from flashmix.mixers._heads import Heads, merge_heads
from flashmix.mixers.config import MixerConfig
from flashmix.mixers.declaration import Benchmarks
from flashmix.mixers.registration import register_mixer
from flashmix.ops import _checks, spectral
from flashmix.ops._packed import Lengths

MOST = 1 << 25
"""Modes, or taps, of a filter: more than any sequence has, and no text may ask for more memory."""


@dataclass(frozen=True, kw_only=True)
class SpectralConfig(MixerConfig):
    """The options of :class:`Spectral`."""

    name = "spectral"
    op = "spectral"

    modes: int | None = None
    unitary: bool = False
    causal: bool = False
    context: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        modes = max(1, self.dim // 2) if self.modes is None else self.modes
        _checks.check_count(self.where, "modes", modes)
        for name in ("unitary", "causal"):
            _checks.check_flag(self.where, name, getattr(self, name))
        if self.causal and self.unitary:
            raise ArgumentError("Spectral: causal and unitary exclude each other; choose one")
        if self.context is not None:
            _checks.check_count(self.where, "context", self.context)
            if not self.causal:
                raise ArgumentError(
                    "Spectral: context is the length of a causal filter; set causal=True"
                )
        for name, value in (("modes", modes), ("context", self.context)):
            if value is not None and value > MOST:
                raise ArgumentError(f"Spectral: {name} must be at most {MOST}, got {value}")
        self._resolve(modes=modes)


@register_mixer
class Spectral(Mixer):
    """A learnable complex filter per channel over the lowest modes along tokens, plus a bias.

    irfft(W * rfft(x)) + b as :func:`flashmix.ops.spectral` defines it; one W serves any length.
    Starts at W = 1, b = 0: with all modes kept that is the identity.

    Args:
        dim: width D.
        modes: modes M that are learned, >= 1; D // 2 (at least one) when None.
        unitary: learn phases only, without bias; modes from M up pass unchanged and DC and
            Nyquist are left alone, so that the energy is kept (Parseval).
        causal: convolve with the filter's impulse response instead, so that no output depends on
            later tokens. Excludes ``unitary``.
        context: taps L of the causal filter; 2 M - 1 when None, with which it starts as the
            identity.
        impl: "auto", or a name of :func:`flashmix.ops.spectral`'s.
    """

    summary = "irfft(W * rfft(x)) + b: a learned filter per channel along tokens"
    cost = "O(N log N)"
    Config = SpectralConfig
    sharding_strategy = "flashmix.parallel.spectral.strategy:SpectralStrategy"
    pictures = frozenset({"filter", "impulse"})
    colour = "#096e40", "#a1d6ab"
    benchmarks = Benchmarks(
        quick="spectral", digits="spectral", swap="spectral", parallel="spectral"
    )
    modes: int
    unitary: bool
    causal: bool
    context: int | None

    def __init__(
        self,
        dim: int,
        *,
        modes: int | None = None,
        unitary: bool = False,
        causal: bool = False,
        context: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            SpectralConfig(
                dim=dim, modes=modes, unitary=unitary, causal=causal, context=context, impl=impl
            )
        )
        if unitary:
            self.phase = nn.Parameter(torch.empty(self.modes, dim))
            self.register_parameter("bias", None)
        else:
            self.weight = nn.Parameter(torch.empty(self.modes, dim, 2))
            self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W = 1 and b = 0."""
        with torch.no_grad():
            if self.unitary:
                self.phase.zero_()
            else:
                self.weight.zero_().select(-1, 0).fill_(1)
                self.bias.zero_()

    def filter(self) -> Tensor:
        """W, as its real and imaginary parts [M, D, 2]."""
        if self.unitary:
            return torch.stack((self.phase.cos(), self.phase.sin()), dim=-1)
        return self.weight

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
        """Filter tokens [B, N, D], or this rank's slice of them."""
        if self.sharding is not None:
            return self.sharding.mix(self, (x,), mask)
        return self.mix_whole(x, mask)

    def mix_whole(self, x: Tensor, mask: Tensor | None, **lengths: Unpack[Lengths]) -> Tensor:
        """Filter whole sequences [B, N, D]."""
        return self.apply_filter(x, self.filter(), self.bias, mask, **lengths)

    def apply_filter(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        **lengths: Unpack[Lengths],
    ) -> Tensor:
        """Filter C channels [B, N, C] by ``weight`` [M, C, 2] and ``bias`` [C]."""
        return spectral(
            x,
            weight,
            bias,
            mask=mask,
            causal=self.causal,
            context=self.context,
            unitary=self.unitary,
            impl=self.impl,
            **lengths,
        )

"""The strategy of each mixer."""

from __future__ import annotations

from typing import Any

from torch import nn

from flashmix.mixers import (
    Attention,
    FNet,
    FourierAttention,
    Hybrid,
    LocalAttention,
    Mixer,
    Spectral,
    TopKAttention,
)
from flashmix.parallel.attention.strategy import AttentionStrategy, HeadExchange
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.ranks import Ranks
from flashmix.parallel.fnet.strategy import FNetStrategy
from flashmix.parallel.halo.strategy import LocalStrategy
from flashmix.parallel.spectral.strategy import SpectralStrategy
from flashmix.parallel.strategy import Call, MixerStrategy


class HybridStrategy(MixerStrategy[Hybrid]):
    """Nothing of its own: each of the parts has its strategy."""

    replaces = ()

    def guard(self, module: nn.Module) -> None:
        """Nothing: the parts reach the other ranks."""

    def bytes_sent(self, mixer: Hybrid, call: Call, layout: Layout, rank: int) -> int | None:
        return None


MIXER_STRATEGIES: dict[type[Mixer], type[MixerStrategy[Any]]] = {
    Attention: AttentionStrategy,
    LocalAttention: LocalStrategy,
    TopKAttention: HeadExchange,
    FNet: FNetStrategy,
    Spectral: SpectralStrategy,
    FourierAttention: HeadExchange,
    Hybrid: HybridStrategy,
}


def mixer_strategy(mixer: Mixer, ranks: Ranks) -> MixerStrategy[Any]:
    """The strategy of ``mixer``, which is not attached to it."""
    for kind in type(mixer).__mro__:
        if kind in MIXER_STRATEGIES:
            return MIXER_STRATEGIES[kind](mixer, ranks)
    raise AssertionError(f"{type(mixer).__name__} has no strategy")

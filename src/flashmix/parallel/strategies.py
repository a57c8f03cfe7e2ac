"""The strategy that each mixer's class declares."""

from __future__ import annotations

import pkgutil
from typing import Any

from torch import nn

from flashmix.errors import ArgumentError
from flashmix.mixers import Hybrid, Mixer
from flashmix.mixers.registry import registered_mixers
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.ranks import Ranks
from flashmix.parallel.strategy import Call, MixerStrategy


class HybridStrategy(MixerStrategy[Hybrid]):
    """Nothing of its own: each of the parts has its strategy."""

    replaces = ()

    def guard(self, module: nn.Module) -> None:
        """Nothing: the parts reach the other ranks."""

    def bytes_sent(self, mixer: Hybrid, call: Call, layout: Layout, rank: int) -> int | None:
        return None


def find_strategy(kind: type[Mixer], where: str) -> tuple[type[Mixer], type[MixerStrategy[Any]]]:
    """The class in the ancestry of ``kind`` that declares a strategy, and the strategy.

    Raises:
        ArgumentError: none does; ``where`` names the module.
    """
    base: Any = next(base for base in kind.__mro__ if "sharding_strategy" in vars(base))
    if base.sharding_strategy is None:
        able = [one.__name__ for one in registered_mixers().values() if one.sharding_strategy]
        raise ArgumentError(
            f"{where} cannot be sharded: its class declares no sharding_strategy. Mixers that can, "
            f"and their subclasses: {', '.join(able)}"
        )
    return base, pkgutil.resolve_name(base.sharding_strategy)


def mixer_strategy(mixer: Mixer, ranks: Ranks) -> MixerStrategy[Any]:
    """The strategy of ``mixer``, which is not attached to it."""
    _, strategy = find_strategy(type(mixer), type(mixer).__name__)
    return strategy(mixer, ranks)

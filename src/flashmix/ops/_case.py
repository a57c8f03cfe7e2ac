"""What an implementation is chosen for."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Case:
    """A call's first argument and the options that matter to the choice.

    ``options`` holds, where the op has them, ``masked``, ``causal``, ``modes`` and the like.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    options: Mapping[str, int | bool] = field(default_factory=dict)

    def sizes(self) -> tuple[int, ...]:
        """The shape as plain integers, to which a graph being compiled is then bound."""
        # Unlike int(), index() makes the compiler settle on a number where it traces any length.
        return tuple(operator.index(size) for size in self.shape)

    def key(self) -> tuple[tuple[int, ...], int | None, torch.dtype, torch.device]:
        """What measured times are looked up by."""
        modes = self.options.get("modes")
        return (
            self.sizes(),
            None if modes is None else operator.index(modes),
            self.dtype,
            self.device,
        )

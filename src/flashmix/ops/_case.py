"""What an implementation is chosen for."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from flashmix.ops._compile import all_known

KNOBS = ("modes", "window", "topk")
"""Options that decide how much there is to do."""


@dataclass(frozen=True)
class Case:
    """A call's first argument and the options that matter to the choice.

    ``options`` holds, where the op has them, ``masked``, ``causal``, ``modes``, ``window``,
    ``topk`` and the like. ``machine`` names a GPU or processor other than the one here.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    options: Mapping[str, int | bool] = field(default_factory=dict)
    machine: str | None = None

    def sizes(self) -> tuple[int, ...]:
        """The shape as plain integers, to which a graph being compiled is then bound."""
        # Unlike int(), index() makes the compiler settle on a number where it traces any length.
        return tuple(operator.index(size) for size in self.shape)

    def key(
        self,
    ) -> tuple[tuple[tuple[str, int], ...], torch.dtype, torch.device, str | None] | None:
        """What measured times are looked up by; None while a graph is compiled for any size."""
        if not all_known(self.shape):
            return None
        if len(self.shape) == 4:
            batch, heads, seq_len, width = self.shape
            sizes = [("batch", batch), ("seq_len", seq_len), ("dim", heads * width)]
            sizes.append(("num_heads", heads))
        else:
            sizes = list(zip(("batch", "seq_len", "dim"), self.shape, strict=True))
        knobs = [(name, int(self.options[name])) for name in KNOBS if name in self.options]
        return (*sizes, *knobs), self.dtype, self.device, self.machine

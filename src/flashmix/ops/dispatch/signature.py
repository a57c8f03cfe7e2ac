"""What an implementation is chosen for: the signature of a call."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from flashmix.ops._compile import all_known

SIZE_OPTIONS = ("modes", "window", "topk")
"""Options that decide how much there is to do."""

Direction = Literal["forward", "training"]
"""``training`` where autograd records the call, so that a backward follows."""

Sizes = tuple[tuple[str, int], ...]
"""Sizes by name, in a fixed order."""


@dataclass(frozen=True)
class Signature:
    """A call of an op: the shape and dtype of its first argument, and what else matters.

    Attributes:
        shape: [B, N, D] or [B, H, N, dh]; of packed tokens, with S sequences of ``max_seqlen``
            tokens, or of all T where that is not known.
        dtype: of the first argument.
        device: of the first argument.
        options: where the op has them, ``masked``, ``packed``, ``causal``, ``modes``,
            ``window``, ``topk``. What is packed is masked too.
        direction: whether autograd records the call.
        machine: the name of a GPU or processor other than the one here.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    options: Mapping[str, int | bool] = field(default_factory=dict)
    direction: Direction = "forward"
    machine: str | None = None

    def key(self) -> tuple[object, ...]:
        """All of it, as what can be looked up."""
        options = tuple(self.options.items())
        return self.shape, self.dtype, self.device, options, self.direction, self.machine

    def static_shape(self) -> tuple[int, ...]:
        """The shape as plain integers, to which a graph being compiled is then bound."""
        # Unlike int(), index() makes the compiler settle on a number where it traces any length.
        return tuple(operator.index(size) for size in self.shape)

    def sizes(self) -> Sizes | None:
        """What costs are looked up by; None while a graph is compiled for any size."""
        if not all_known(self.shape):
            return None
        if len(self.shape) == 4:
            batch, heads, seq_len, width = self.shape
            sizes = [("batch", batch), ("seq_len", seq_len), ("dim", heads * width)]
            sizes.append(("num_heads", heads))
        else:
            sizes = list(zip(("batch", "seq_len", "dim"), self.shape, strict=True))
        given = [(name, int(self.options[name])) for name in SIZE_OPTIONS if name in self.options]
        return (*sizes, *given)

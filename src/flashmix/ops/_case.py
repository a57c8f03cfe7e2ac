"""What an implementation is chosen for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

_TOKENS = ("batch", "seq_len", "dim")
_HEADS = ("batch", "num_heads", "seq_len", "head_dim")

KNOBS = ("modes", "window", "topk")
"""Options that decide how much there is to do."""


@dataclass(frozen=True)
class Case:
    """A call's first argument and the options that matter to the choice.

    ``options`` holds, where the op has them, ``masked``, ``causal``, ``modes``, ``window``,
    ``topk`` and the like.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    options: Mapping[str, int | bool] = field(default_factory=dict)

    def key(self) -> tuple[tuple[tuple[str, int], ...], torch.dtype, torch.device]:
        """What measured times are looked up by; a graph being compiled is bound to these sizes."""
        shape = [int(size) for size in self.shape]
        if len(shape) == len(_HEADS):
            sizes = dict(zip(_HEADS, shape, strict=True))
            sizes["dim"] = sizes["num_heads"] * sizes.pop("head_dim")
        else:
            sizes = dict(zip(_TOKENS, shape, strict=True))
        knobs = {name: int(self.options[name]) for name in KNOBS if name in self.options}
        return tuple({**sizes, **knobs}.items()), self.dtype, self.device

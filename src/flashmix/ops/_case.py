"""What an implementation is chosen for."""

from __future__ import annotations

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

    def key(self) -> tuple[tuple[int, ...], int | None, torch.dtype, torch.device]:
        """What measured times are looked up by; a graph being compiled is bound to these sizes."""
        modes = self.options.get("modes")
        shape = tuple(int(size) for size in self.shape)
        return shape, None if modes is None else int(modes), self.dtype, self.device

"""Mixing that costs nothing: the most that any swap could give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from flashmix.hf import swap
from flashmix.mixers import MIXERS, Mixer
from flashmix.mixers._heads import Heads, merge_heads
from flashmix.mixers.config import MixerConfig


class FreeConfig(MixerConfig):
    """The options of :class:`Free`: none."""

    name = "free"


class Free(Mixer):
    """Passes the tokens on, unmixed. No mixer that a user can name: it is there to be timed."""

    summary = "the tokens themselves"
    cost = "nothing"
    Config = FreeConfig

    def __init__(self, dim: int, *, impl: str = "auto") -> None:
        super().__init__(FreeConfig(dim=dim, impl=impl))

    def forward(
        self,
        x: Tensor | Heads,
        mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """The tokens, [B, N, D] or packed [T, D]."""
        return merge_heads(x.v) if isinstance(x, Heads) else x


@contextmanager
def _known() -> Iterator[None]:
    MIXERS["free"] = Free
    try:
        yield
    finally:
        del MIXERS["free"]


def swap_free(model: nn.Module, **options: Any) -> nn.Module:
    """Let the model mix nothing: projections of q, k and v and the mixing are gone, in place."""
    with _known():
        return swap(model, "free", **options)

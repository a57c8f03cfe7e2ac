"""What every sharded module shares: its ranks, and their agreement before each call."""

from __future__ import annotations

import zlib

from torch import Tensor, nn

from flashmix.errors import ArgumentError, ImplementationError
from flashmix.mixers import Mixer
from flashmix.ops._triton import availability
from flashmix.parallel._layout import FACTS, Layout, agree
from flashmix.parallel._ranks import Ranks


class OverRanks(nn.Module):
    """A module whose tokens are spread over ranks: its inputs and outputs are this rank's slice.

    A subclass stands before the module's own class among its bases, and a module becomes one by
    its class being set and :meth:`take` called; parameters and their names stay as they are.
    """

    ranks: Ranks
    where: str
    fingerprint: int

    @classmethod
    def check_form(cls, module: nn.Module, place: str) -> None:
        """Raise ImplementationError where ``module``, at ``place``, cannot become one."""

    def take(self, ranks: Ranks, name: str, kind: str) -> None:
        """Become one of the ranks' modules: ``name`` is its place in the model."""
        options = sorted(
            (key, value)
            for key, value in vars(self).items()
            if isinstance(value, bool | int | float | str) and key != "training"
        )
        self.where = f"{name} ({kind})" if name else kind
        # What travels depends on whether there are kernels to pack it.
        told = (self.where, options, availability.missing() is None)
        self.fingerprint = zlib.crc32(repr(told).encode())
        self.ranks = ranks

    def layout(self, x: Tensor, mask: Tensor | None, tokens_dim: int) -> Layout:
        """How the tokens lie over the ranks, once all agree; see :func:`agree`."""
        return agree(self.where, self.fingerprint, x, mask, self.ranks, tokens_dim)


class Sharded(OverRanks, Mixer):
    """A mixer over ranks, x and y [B, n, D]."""

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        """As the mixer's own, and tell the other ranks, which would wait in vain."""
        try:
            super().check(x, mask)
        except ArgumentError as error:
            self.ranks.refuse(str(error), len(FACTS))
            raise

    def no_weights(self) -> ImplementationError:
        """The error for asking for weights or magnitudes over all tokens."""
        return ImplementationError(
            f"{self.where}: no rank holds the weights over all tokens; ask for them on one device"
        )


class ShardedQKV(Sharded):
    """A sharded mixer with q, k and v."""

    def mix_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Raise ImplementationError: no rank holds the weights."""
        raise self.no_weights()

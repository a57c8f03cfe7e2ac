"""What every sharded module shares: its ranks, and their agreement before each call."""

from __future__ import annotations

import zlib
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from flashmix.errors import ArgumentError, ImplementationError
from flashmix.mixers import Mixer
from flashmix.ops._triton import availability
from flashmix.parallel.comm.graphs import capturing
from flashmix.parallel.comm.layout import METADATA, Layout, call_metadata, gather_layout
from flashmix.parallel.comm.ranks import Ranks

REMEMBERED_CALLS = 64
"""Kinds of call of which a module remembers how the tokens lay."""


class ShardedModule(nn.Module):
    """A module whose tokens are spread across ranks: its inputs and outputs are this rank's slice.

    A subclass stands before the module's own class among its bases, and a module becomes one by
    its class being set and :meth:`attach` called; parameters and their names stay as they are.

    Attributes:
        sum_gradients: whether its calls give the gradients of its own parameters summed over the
            ranks; only those of a class with ``sums_gradients`` do.
    """

    sums_gradients: ClassVar[bool] = False
    """Whether its calls can do that."""
    sum_gradients: bool = False
    ranks: Ranks
    where: str
    fingerprint: int
    agreed: dict[tuple[int, ...], tuple[int, ...] | None]
    """Tokens of each rank by this one's metadata, as of the last such call; None with a mask."""

    @classmethod
    def check_supported(cls, module: nn.Module, place: str) -> None:
        """Raise ImplementationError where ``module``, at ``place``, cannot become one."""

    def attach(self, ranks: Ranks, name: str, kind: str) -> None:
        """Become one of the ranks' modules: ``name`` is its place in the model."""
        options = sorted(
            (key, value)
            for key, value in vars(self).items()
            if isinstance(value, bool | int | float | str) and key != "training"
        )
        self.where = f"{name} ({kind})" if name else kind
        # What travels depends on whether there are kernels to pack it.
        parts = (self.where, options, availability.missing() is None)
        self.fingerprint = zlib.crc32(repr(parts).encode())
        self.ranks = ranks
        self.agreed = {}

    def layout(self, x: Tensor, mask: Tensor | None, tokens_dim: int) -> Layout:
        """How the tokens lie across the ranks, once all agree; see :func:`gather_layout`.

        In a CUDA graph nobody can be asked: there it is what all agreed on in the last such call.

        Raises:
            ParallelError: on every rank, where they do not fit.
            ImplementationError: a call that cannot be captured in a CUDA graph, or one in forward
                mode or under a transform of ``torch.func``.
        """
        if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            raise ImplementationError(
                f"{self.where}: a sequence across ranks has no tangents and no transforms of "
                "torch.func; take them on one device, where impl='reference' has all of them"
            )
        metadata = call_metadata(x, mask, tokens_dim, self.fingerprint)
        call = tuple(metadata.values())
        if capturing():
            return Layout(self.ranks, self._counts(call, mask), None)
        layout = gather_layout(self.where, metadata, x, mask, self.ranks)
        self.agreed.pop(call, None)
        self.agreed[call] = layout.counts if layout.mask is None else None
        if len(self.agreed) > REMEMBERED_CALLS:
            del self.agreed[next(iter(self.agreed))]
        return layout

    def _counts(self, call: tuple[int, ...], mask: Tensor | None) -> tuple[int, ...]:
        """The tokens of each rank, as in the last ``call``."""
        counts = self.agreed.get(call)
        if mask is not None or (counts is None and call in self.agreed):
            raise ImplementationError(
                f"{self.where}: with a mask, on this rank or another, a sequence across ranks "
                "cannot be captured in a CUDA graph, since the host must read the mask; remove the "
                "padding, or do not capture"
            )
        if counts is None:
            raise ImplementationError(
                f"{self.where}: ranks cannot ask each other how the tokens lie while a CUDA graph "
                "is captured; before that, call it once on every rank with the same shapes, dtype "
                "and requires_grad, in the same gradient mode"
            )
        return counts


class Sharded(ShardedModule, Mixer):
    """A mixer across ranks, x and y [B, n, D]."""

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        """As the mixer's own, and tell the other ranks, which would wait in vain."""
        try:
            super().check(x, mask)
        except ArgumentError as error:
            if capturing():
                raise  # the others ask nobody either
            self.ranks.broadcast_error(str(error), len(METADATA))
            raise

    def weights_error(self) -> ImplementationError:
        """The error for asking for weights or magnitudes over all tokens."""
        return ImplementationError(
            f"{self.where}: no rank holds the weights over all tokens; ask for them on one device"
        )


class ShardedQKV(Sharded):
    """A sharded mixer with q, k and v."""

    grouped = False

    def mix_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Raise ImplementationError: no rank holds the weights."""
        raise self.weights_error()

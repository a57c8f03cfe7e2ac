"""What all strategies share: the ranks, and the checks before each call."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

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
"""Kinds of call whose token counts a module remembers, for CUDA graphs."""

AnyMixer = TypeVar("AnyMixer", bound=Mixer)


class ShardedModule:
    """The strategy of one module whose tokens are sharded: its inputs are this rank's slice.

    :meth:`attach` puts it into the module's ``sharding``, which the module asks before it does
    what reaches across tokens. The module's class, parameters and their names stay as they are.

    Attributes:
        ranks: the ranks.
        where: the module's name in the model and its class, for messages.
        fingerprint: a hash of ``where`` and the module's options, equal on all ranks.

    Args:
        module: the module.
        ranks: the ranks.
        name: the module's name in the model.
    """

    replaces: ClassVar[tuple[str, ...]] = ()
    """Methods whose work the strategy does instead; a subclass must not override them."""

    def __init__(self, module: nn.Module, ranks: Ranks, name: str) -> None:
        options = sorted(
            (key, value)
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | tuple) and key != "training"
        )
        kind = type(module).__name__
        self.where = f"{name} ({kind})" if name else kind
        # Whether there are kernels decides what is exchanged.
        parts = (self.where, options, availability.missing() is None)
        self.fingerprint = zlib.crc32(repr(parts).encode())
        self.ranks = ranks
        self._remembered: dict[tuple[int, ...], tuple[int, ...] | None] = {}
        self._called = False

    @classmethod
    def check_supported(cls, module: nn.Module, base: type[nn.Module], where: str) -> None:
        """Raise ImplementationError where ``module``, a ``base``, cannot be sharded."""
        for name in cls.replaces:
            if getattr(type(module), name) is not getattr(base, name):
                raise ImplementationError(
                    f"{where}: it overrides {name}() of {base.__name__}, which computes otherwise "
                    "when the sequence is sharded across ranks; change what comes before or after "
                    f"{name}() instead, in forward()"
                )

    def attach(self, module: Any) -> None:
        """Make ``module`` work on this rank's slice from now on."""
        module.sharding = self

    def guard(self, module: nn.Module) -> None:
        """Check after each call that a user's ``forward`` did reach the other ranks' tokens."""
        module.register_forward_hook(self._check_called)

    def _check_called(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self._called:
            raise ImplementationError(
                f"{self.where}: its forward() did not call mix(), through which it reaches the "
                "tokens of other ranks; call mix() or super().forward() there"
            )
        self._called = False

    def layout(self, x: Tensor, mask: Tensor | None, tokens_dim: int) -> Layout:
        """How the tokens of a call are distributed, after a check that the ranks' calls match.

        While a CUDA graph is captured the ranks cannot communicate through the host; then it is the
        layout of the last such call.

        Raises:
            ParallelError: on every rank, where the calls do not match.
            ImplementationError: a call that cannot be captured in a CUDA graph, or one in forward
                mode or under a transform of ``torch.func``.
        """
        if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            raise ImplementationError(
                f"{self.where}: a sequence across ranks supports neither forward-mode derivatives "
                "nor transforms of torch.func; take them on one device, where impl='reference' "
                "supports both"
            )
        self._called = True
        metadata = call_metadata(x, mask, tokens_dim, self.fingerprint)
        call = tuple(metadata.values())
        if capturing():
            return Layout(self.ranks, self._remembered_counts(call, mask), None)
        layout = gather_layout(self.where, metadata, x, mask, self.ranks)
        self._remembered.pop(call, None)
        self._remembered[call] = layout.counts if layout.mask is None else None
        if len(self._remembered) > REMEMBERED_CALLS:
            del self._remembered[next(iter(self._remembered))]
        return layout

    def _remembered_counts(self, call: tuple[int, ...], mask: Tensor | None) -> tuple[int, ...]:
        """The tokens of each rank in the last such call."""
        counts = self._remembered.get(call)
        if mask is not None or (counts is None and call in self._remembered):
            raise ImplementationError(
                f"{self.where}: with a mask, on this rank or another, a sequence across ranks "
                "cannot be captured in a CUDA graph, since the host must read the mask; remove the "
                "padding, or do not capture"
            )
        if counts is None:
            raise ImplementationError(
                f"{self.where}: the ranks cannot exchange token counts while a CUDA graph is "
                "captured; before that, call it once on every rank with the same shapes, dtype "
                "and requires_grad, in the same gradient mode"
            )
        return counts

    def broadcast_error(self, error: ArgumentError) -> None:
        """Let the other ranks, which wait in :meth:`layout`, raise ``error`` too."""
        if not capturing():  # where no rank waits for another
            self.ranks.broadcast_error(str(error), len(METADATA))


@dataclass(frozen=True)
class Call:
    """A call whose bytes are derived; its tokens are all real.

    Attributes:
        batch, dim: B and D.
        dtype, device: of the tokens.
        backward: whether the backward is counted too.
    """

    batch: int
    dim: int
    dtype: torch.dtype
    device: str
    backward: bool

    @property
    def passes(self) -> int:
        """Forward passes and backward passes."""
        return 2 if self.backward else 1


class MixerStrategy(ShardedModule, Generic[AnyMixer]):
    """How one kind of mixer works across ranks: what it exchanges, and how many bytes that is.

    Attributes:
        sum_gradients: whether the mixer's backward gives full gradients of its own parameters; only
            where ``sums_gradients`` is True.
    """

    replaces: ClassVar[tuple[str, ...]] = ("mix_whole",)
    sums_gradients: ClassVar[bool] = False
    """Whether the mixer's backward can sum the gradients of its own parameters across the ranks."""

    def __init__(self, mixer: AnyMixer, ranks: Ranks, name: str = "") -> None:
        super().__init__(mixer, ranks, name)
        self.sum_gradients = False

    def mix(self, mixer: AnyMixer, inputs: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        """The own slice of ``mixer.mix_whole(*inputs, mask)`` of all ranks' tokens.

        Args:
            mixer: the mixer.
            inputs: this rank's slice: heads [B, H, n, dh], or tokens [B, n, D].
            mask: bool [B, n], or None.
        """
        raise NotImplementedError

    def bytes_sent(self, mixer: AnyMixer, call: Call, layout: Layout, rank: int) -> int | None:
        """Bytes that ``rank`` sends in :meth:`mix` and its backward; None where not derived.

        Metadata and the gradients of parameters are not included.
        """
        raise NotImplementedError

    def gradient_payloads(self, mixer: AnyMixer, layout: Layout) -> list[int]:
        """Numbers in each all-reduce of gradients of the mixer's parameters."""
        return [parameter.numel() for parameter in mixer.parameters()]

    def all_tokens_error(self, what: str) -> ImplementationError:
        """The error for asking for ``what``, which needs all tokens."""
        return ImplementationError(
            f"{self.where}: {what} would need all tokens, of which a rank has a slice; compute "
            "this on one device"
        )

"""What every mixer shares: the interface, and the projections of those that have heads.

Shapes: B batch, N tokens, D width, H heads, dh = D / H width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from flashmix.errors import ArgumentError, ImplementationError
from flashmix.ops import OPERATORS, _checks
from flashmix.ops._padding import zero_padding

HEAD_WIDTH = 64


class Mixer(nn.Module, ABC):
    """A token mixer: ``mixer(x, mask=None) -> y``, x and y [B, N, D], mask bool [B, N].

    It acts as if the padding (mask False) had been removed, and its output there is zero.
    """

    summary: ClassVar[str]
    cost: ClassVar[str]
    op: ClassVar[str]
    """Name of the operator that mixes, whose implementations ``impl`` names."""
    reads: str = ""
    """Which of the projections q, k and v its mixing reads: "qkv", "v" or "" (the tokens)."""

    def __init__(self, dim: int, impl: str = "auto") -> None:
        super().__init__()
        _checks.check_count(type(self).__name__, "dim", dim)
        if impl != "auto":
            OPERATORS[self.op].check_impl(impl)
        self.dim = dim
        self.impl = impl

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens of ``x`` [B, N, D]."""

    def mix_heads(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mixing alone, between projections that another module holds.

        Args:
            q, k, v: [B, H, N, dh]; one that :attr:`reads` does not name is ignored, except that
                ``v`` holds the tokens where it names none.
            mask: bool [B, N], True = a real token.

        Returns:
            [B, N, D], the heads side by side, before any output projection; zero at padding.
        """
        return self(v.transpose(1, 2).flatten(2), mask)

    def drop_projections(self) -> Self:
        """Delete the projections around the mixing, and return self; :meth:`mix_heads` is left."""
        return self

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        """Raise ArgumentError unless ``x`` is [B, N, D] and ``mask`` fits it."""
        _checks.check_tokens(type(self).__name__, x, mask, self.dim)


def head_count(where: str, dim: int, num_heads: int | None) -> int:
    """``num_heads``, or by default heads of width 64 where they divide ``dim``, else one."""
    if num_heads is None:
        return dim // HEAD_WIDTH if dim % HEAD_WIDTH == 0 else 1
    _checks.check_count(where, "num_heads", num_heads)
    if dim % num_heads:
        raise ArgumentError(f"{where}: num_heads must divide dim = {dim}, got {num_heads}")
    return num_heads


class QKVMixer(Mixer):
    """A mixer with q, k, v and output projections; subclasses say how heads mix."""

    reads = "qkv"

    def __init__(
        self, dim: int, *, num_heads: int | None = None, bias: bool = True, impl: str = "auto"
    ) -> None:
        super().__init__(dim, impl)
        self.num_heads = head_count(type(self).__name__, dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, return_weights: bool = False
    ) -> Any:
        """Mix the tokens of ``x``.

        Args:
            x: [B, N, D], floating.
            mask: bool [B, N], True = a real token.
            return_weights: also return the weights [B, H, N, N], computed by the reference.

        Returns:
            y [B, N, D], or (y, weights).

        Raises:
            ArgumentError: ``x`` or ``mask`` does not fit.
            ImplementationError: ``impl`` cannot run here, or never holds the weights.
        """
        self.check(x, mask)
        # NaN at padding would reach the projections' gradients through 0 * NaN.
        qkv = self.qkv(zero_padding(x, mask))
        # Split where they lie, so that their gradients are put together by one copy.
        parts = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        weights = None
        if return_weights:
            y, weights = self.mix_with_weights(q, k, v, mask)
        else:
            y = self.mix(q, k, v, mask)
        y = zero_padding(self.out(y.transpose(1, 2).flatten(2)), mask)
        return y if weights is None else (y, weights)

    def mix_heads(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.mix(q, k, v, mask).transpose(1, 2).flatten(2)

    def drop_projections(self) -> Self:
        del self.qkv, self.out
        return self

    @abstractmethod
    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Mix heads, [B, H, N, dh]."""

    @abstractmethod
    def mix_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mix heads and return the weights [B, H, N, N] too."""


def check_weights_impl(where: str, impl: str) -> None:
    """Only the reference holds the N x N weights; an explicit other ``impl`` raises."""
    if impl not in ("auto", "reference", "naive"):
        raise ImplementationError(
            f"{where}: impl={impl!r} never holds the N x N weights; "
            "return_weights needs impl='auto' or 'reference'"
        )

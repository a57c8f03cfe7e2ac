"""What the registered implementations of FNet mixing share: fake kernel and autograd.

FNet is its own adjoint: its backward is itself, and saves no activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def register(op: Any) -> None:
    """Give ``op`` (x, mask, norm) its fake kernel, and itself as gradient."""
    op.register_fake(fake)
    op.register_autograd(gradient_by(op), setup_context=setup)


def fake(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """An output of the right shape."""
    return x.new_empty(x.shape)


def setup(ctx: Any, inputs: tuple[Tensor, Tensor | None, str], output: Tensor) -> None:
    """Keep what the backward needs."""
    _, ctx.mask, ctx.norm = inputs


def gradient_by(op: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None, None]]:
    """The backward of an op, which is ``op`` itself."""

    def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return op(grad, ctx.mask, ctx.norm), None, None

    return gradient

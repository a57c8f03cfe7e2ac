"""What the registered implementations of FNet mixing share: fake kernel and autograd.

FNet is its own adjoint: its backward is itself, and saves no activation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def register(op: Any) -> None:
    """Give ``op`` (x, mask, norm) its fake kernel, and itself as gradient."""

    def fake(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
        return x.new_empty(x.shape)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.mask, ctx.norm = inputs

    def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return op(grad, ctx.mask, ctx.norm), None, None

    op.register_fake(fake)
    op.register_autograd(gradient, setup_context=setup)

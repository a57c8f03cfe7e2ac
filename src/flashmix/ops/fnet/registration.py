"""What the registered implementations of FNet mixing share: fake kernel, formula and autograd.

FNet is its own adjoint: its backward is itself, and saves the mask alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flashmix.ops._library import KernelOp
from flashmix.ops._packed import through_padding
from flashmix.ops.fnet import reference


def packed_formula(x: Tensor, cu_seqlens: Tensor, norm: str) -> Tensor:
    """The reference of packed tokens [T, D]."""
    return through_padding(lambda x, mask: reference.fnet(x, mask, norm), cu_seqlens, None, x)


def register(op: KernelOp, formula: Callable[..., Tensor] = reference.fnet) -> None:
    """Give ``op`` its fake kernel, its formula, and itself as gradient.

    It takes (x, mask, norm), or with ``packed_formula`` cu_seqlens for the mask.
    """

    def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return op(grad, mask, ctx.norm), None, None

    op.register_fake(_fake)
    op.register_formula(formula)
    op.register_autograd(gradient, setup_context=_setup)


def _fake(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor | None, str], output: Tensor) -> None:
    _, mask, ctx.norm = inputs
    ctx.save_for_backward(mask)

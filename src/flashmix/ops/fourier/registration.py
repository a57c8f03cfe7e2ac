"""What the registered implementations of Fourier attention share.

Tokens stand on axis 1 in here: v [B, N, H, dh].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flashmix.ops._derivatives import vjp
from flashmix.ops._library import KernelOp
from flashmix.ops._packed import through_padding
from flashmix.ops.fourier import reference


def _formula(v: Tensor, mask: Tensor | None) -> Tensor:
    return reference.fourier(v.transpose(1, 2), mask).transpose(1, 2)


def packed_formula(v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The reference of packed tokens [T, H, dh]."""
    return through_padding(reference.fourier, cu_seqlens, None, v)


def register(op: KernelOp, backward: KernelOp, formula: Callable[..., Tensor] = _formula) -> None:
    """Give ``op`` (v, mask) its fake, formula, and ``backward`` (grad, v, mask) as gradient.

    With ``packed_formula`` they take cu_seqlens for the mask. Only v and mask are saved.
    """

    def backward_formula(grad: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        (grad_v,) = vjp(lambda v: formula(v, mask), (v,), grad)
        return grad_v

    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return backward(grad, *ctx.saved_tensors), None

    op.register_fake(lambda v, mask: v.new_empty(v.shape))
    op.register_formula(formula)
    backward.register_fake(lambda grad, v, mask: v.new_empty(v.shape))
    backward.register_formula(backward_formula, inputs=2)
    op.register_autograd(gradients, setup_context=_setup)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)

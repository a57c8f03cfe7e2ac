"""What filters with a bias of their own register alike: fake kernels and autograd.

Shapes: B batch, N tokens, D channels, M learned modes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flashmix.ops._library import KernelOp

Gradients = tuple[Tensor, Tensor, Tensor | None, None, None]


def register(op: KernelOp, backward: KernelOp) -> None:
    """Give ``op`` (x, weight, bias, mask, unitary) its fake kernel, and ``backward`` as gradient.

    ``backward`` (grad, x, weight, mask, unitary) returns the gradients of x, of weight, and of a
    bias [D] in the dtype of weight. Only x, weight and mask are saved.
    """

    def gradients(ctx: Any, grad: Tensor) -> Gradients:
        x, weight, mask = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = backward(grad, x, weight, mask, ctx.unitary)
        bias = None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype)
        return grad_x, grad_weight, bias, None, None

    op.register_fake(_fake)
    backward.register_fake(_fake_backward)
    op.register_autograd(gradients, setup_context=_setup)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, unitary: bool
) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    bias = weight.new_empty(x.shape[2])
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias


def _setup(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool], output: Tensor
) -> None:
    x, weight, bias, mask, ctx.unitary = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, mask)

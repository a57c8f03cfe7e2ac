"""What filters with a bias of their own register alike: fake kernels and autograd.

Shapes: B batch, N tokens, D channels, M learned modes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor | None, None, None]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


def register(op: Any, backward: Any) -> None:
    """Give ``op`` (x, weight, bias, mask, unitary) its fake kernel, and ``backward`` as gradient.

    ``backward`` (grad, x, weight, mask, unitary) returns the gradients of x, of weight, and of a
    bias [D] in the dtype of weight. Only x, weight and mask are saved.
    """
    op.register_fake(fake)
    backward.register_fake(fake_backward)
    op.register_autograd(gradients_by(backward), setup_context=setup)


def fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, unitary: bool
) -> Tensor:
    """An output of the right shape."""
    return x.new_empty(x.shape)


def fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the right shapes."""
    bias = weight.new_empty(x.shape[2])
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias


def setup(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool], output: Tensor
) -> None:
    """Keep what the backward needs."""
    x, weight, bias, mask, ctx.unitary = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, mask)


def gradients_by(backward: Backward) -> Callable[..., Gradients]:
    """The gradients of an op by its ``backward``, as :func:`register` takes it."""

    def gradients(ctx: Any, grad: Tensor) -> Gradients:
        x, weight, mask = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = backward(grad, x, weight, mask, ctx.unitary)
        bias = None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype)
        return grad_x, grad_weight, bias, None, None

    return gradients

"""What filters with a bias of their own register alike: fake kernels and autograd.

Shapes: B batch, N tokens, D channels, M learned modes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def register(op: Any, backward: Any) -> None:
    """Give ``op`` (x, weight, bias, mask, unitary) its fake kernel, and ``backward`` as gradient.

    ``backward`` (grad, x, weight, mask, unitary) returns the gradients of x, of weight, and of a
    bias [D] in the dtype of weight. Only x, weight and mask are saved.
    """

    def fake(
        x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, unitary: bool
    ) -> Tensor:
        return x.new_empty(x.shape)

    def fake_backward(
        grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        bias = weight.new_empty(x.shape[2])
        return x.new_empty(x.shape), weight.new_empty(weight.shape), bias

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, mask, ctx.unitary = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, mask)

    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        x, weight, mask = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = backward(grad, x, weight, mask, ctx.unitary)
        bias = None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype)
        return grad_x, grad_weight, bias, None, None

    op.register_fake(fake)
    backward.register_fake(fake_backward)
    op.register_autograd(gradients, setup_context=setup)

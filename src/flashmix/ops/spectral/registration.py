"""What filters with a bias of their own register alike: fake kernels, formulas and autograd.

Shapes: B batch, N tokens, D channels, M learned modes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flashmix.ops._derivatives import vjp
from flashmix.ops._library import KernelOp
from flashmix.ops._packed import through_padding
from flashmix.ops._padding import zero_padding
from flashmix.ops.spectral import reference

Gradients = tuple[Tensor, Tensor, Tensor | None, None, None]


def _formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, unitary: bool
) -> Tensor:
    y = reference.filter_tokens(x, weight, mask, unitary, None)
    return (y if bias is None else zero_padding(y + bias, mask)).to(x.dtype)


def packed_formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, unitary: bool
) -> Tensor:
    """The reference of packed tokens [T, D]."""
    return through_padding(
        lambda x, mask: _formula(x, weight, bias, mask, unitary), cu_seqlens, None, x
    )


def register(op: KernelOp, backward: KernelOp, formula: Callable[..., Tensor] = _formula) -> None:
    """Give ``op`` (x, weight, bias, mask, unitary) its fake, formula, and ``backward`` as gradient.

    ``backward`` (grad, x, weight, mask, unitary) returns the gradients of x, of weight, and of a
    bias [D] in the dtype of weight. With ``packed_formula`` both take cu_seqlens for the mask.
    Only x, weight and mask are saved.
    """

    def gradients(ctx: Any, grad: Tensor) -> Gradients:
        x, weight, mask = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = backward(grad, x, weight, mask, ctx.unitary)
        bias = None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype)
        return grad_x, grad_weight, bias, None, None

    op.register_fake(_fake)

    def backward_formula(
        grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
    ) -> Any:
        def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return formula(x, weight, bias, mask, unitary)

        return vjp(run, (x, weight, weight.new_zeros(x.shape[-1])), grad)

    op.register_formula(formula)
    backward.register_fake(_fake_backward)
    backward.register_formula(backward_formula, inputs=3)
    op.register_autograd(gradients, setup_context=_setup)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, unitary: bool
) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    bias = weight.new_empty(x.shape[-1])
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias


def _setup(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool], output: Tensor
) -> None:
    x, weight, bias, mask, ctx.unitary = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, mask)

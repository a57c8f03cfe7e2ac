"""Sliding-window attention on tensor cores.

The backward saves the output and one logarithm a query, and computes the weights again. Distances
count real tokens: the kernels step over padding, and nothing is gathered beforehand.
Every sum has one owner, so the same input gives the same bits, backward included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops._derivatives import vjp
from flashmix.ops._library import kernel_op
from flashmix.ops._triton.heads import empty_bnhd
from flashmix.ops.local_attention.reference import widened
from flashmix.ops.local_attention.triton import launch


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> Tensor:
    """Attention within the window, [B, H, N, dh]; k and v may have fewer heads."""
    y: Tensor = _op(q, k, v, mask, before, after)[0]
    return y


@kernel_op("local_attention_triton")
def _op(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> tuple[Tensor, Tensor]:
    """The output, and the base-2 logarithm of each query's sum of exponentials [B, H, N]."""
    return launch.forward(q, k, v, mask, before, after)


@_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> tuple[Tensor, Tensor]:
    return empty_bnhd(q), q.new_empty(q.shape[:3], dtype=torch.float32)


_op.register_formula(widened)


@kernel_op("local_attention_triton_backward")
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    logarithm: Tensor,
    mask: Tensor | None,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v."""
    return launch.backward(grad, q, k, v, y, logarithm, mask, before, after)


@_backward_op.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    logarithm: Tensor,
    mask: Tensor | None,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_bnhd(q), empty_bnhd(k), empty_bnhd(v)


def _backward_formula(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, logarithm: Tensor, *options: Any
) -> Any:
    return vjp(lambda *qkv: widened(*qkv, *options), (q, k, v), grad)


_backward_op.register_formula(_backward_formula, inputs=4)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *qkv, mask, ctx.before, ctx.after = inputs
    ctx.save_for_backward(*qkv, *output, mask)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *saved, mask = ctx.saved_tensors
    return *_backward_op(grad, *saved, mask, ctx.before, ctx.after), None, None, None


_op.register_autograd(_backward, setup_context=_setup)

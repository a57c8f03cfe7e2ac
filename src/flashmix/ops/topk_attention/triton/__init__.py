"""Exact top-k attention on tensor cores, without the N x N scores in memory.

The forward saves k indices and weights a query, and the backward reads those keys alone: O(N k).
Sums over queries have one owner and one order, so the same input gives the same bits, backward
included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops._compile import kept_for_any
from flashmix.ops._dense import repeat_heads
from flashmix.ops._library import kernel_op
from flashmix.ops._triton.heads import empty_bnhd
from flashmix.ops.attention.torch_impl import attention
from flashmix.ops.topk_attention import reference
from flashmix.ops.topk_attention.kept import gradients
from flashmix.ops.topk_attention.triton import launch


def topk_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    """Exact top-k attention, [B, H, N, dh]; k and v may have fewer heads."""
    if not kept_for_any(q.shape[2]) and topk >= q.shape[2]:
        return attention(q, *repeat_heads(q, k, v), mask, causal)
    y: Tensor = _op(q, k, v, mask, topk, causal)[0]
    return y


@kernel_op("topk_attention_triton")
def _op(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the kept indices and weights [B, H, N, k]; -1 and 0 where fewer."""
    return launch.forward(q, k, v, mask, topk, causal)


@_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kept = (*q.shape[:3], topk)
    return (
        empty_bnhd(q),
        q.new_empty(kept, dtype=torch.int32),
        q.new_empty(kept, dtype=torch.float32),
    )


def _formula(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    return reference.topk_attention(q, *repeat_heads(q, k, v), mask, topk, causal)


_op.register_formula(_formula)


@kernel_op("topk_attention_triton_backward")
def _backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v."""
    return launch.backward(grad, q, k, v, y, index, weights)


@_backward_op.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_bnhd(q), empty_bnhd(k), empty_bnhd(v)


def _backward_formula(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, index: Tensor, weights: Tensor
) -> Any:
    return gradients(grad, q, k, v, index, weights)


_backward_op.register_formula(_backward_formula, inputs=4)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_op(grad, *ctx.saved_tensors), None, None, None


_op.register_autograd(_backward, setup_context=_setup)

"""Exact top-k attention in native code: scores stay in cache, and only the k kept are stored.

Shapes: B batch, H heads, N tokens, dh width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.errors import ImplementationError
from flashmix.ops._compile import kept_for_any
from flashmix.ops._cpu.heads import shape_of, strides, widen
from flashmix.ops._cpu.library import DATA, FLAG, INT, ROWS, SHAPE, STRIDES, Kernel
from flashmix.ops._library import kernel_op, needs_gradient
from flashmix.ops._precision import transform_dtype
from flashmix.ops.attention.torch_impl import attention
from flashmix.ops.topk_attention import reference
from flashmix.ops.topk_attention.kept import gradients

MOST_PAIRS = 1 << 31
"""Kernels count the pairs of a query and a kept key of one head in 32 bits."""

_QKV, _OUT = (ROWS, ROWS, ROWS), (DATA, DATA, DATA)
_forward = Kernel("topk_forward", SHAPE, INT, FLAG, *_QKV, STRIDES, DATA, DATA, DATA)
_backward = Kernel("topk_backward", SHAPE, INT, ROWS, *_QKV, STRIDES, DATA, DATA, *_OUT)


def topk_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    """Exact top-k attention, [B, H, N, dh]."""
    if not kept_for_any(q.shape[2]) and topk >= q.shape[2]:
        return attention(q, k, v, mask, causal)
    y: Tensor = _op(q, k, v, mask, topk, causal, needs_gradient(q, k, v))[0]
    return y


@kernel_op("topk_attention_cpu", key="CPU")
def _op(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and where ``save`` the kept indices and weights [B, H, N, k]; -1 where fewer."""
    if topk * q.shape[2] >= MOST_PAIRS:
        raise ImplementationError(
            f"topk_attention: 'cpu' takes N * topk below {MOST_PAIRS}, not {topk * q.shape[2]}; "
            "use impl='torch'"
        )
    dtype = q.dtype
    q, k, v = widen(q, k, v)
    y = torch.empty(q.shape, dtype=q.dtype)
    kept = (*q.shape[:3], topk if save else 0)
    index, weights = torch.empty(kept, dtype=torch.int32), torch.empty(kept, dtype=q.dtype)
    shape, _alive = shape_of(q.shape, mask)
    saved = (index, weights) if save else (None, None)
    _forward(q.dtype, shape, topk, causal, q, k, v, strides(q, k, v), y, *saved)
    return y.to(dtype), index, weights


@_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kept = (*q.shape[:3], topk if save else 0)
    return (
        q.new_empty(q.shape),
        q.new_empty(kept, dtype=torch.int32),
        q.new_empty(kept, dtype=transform_dtype(q.dtype)),
    )


_op.register_formula(lambda *arguments: reference.topk_attention(*arguments[:-1]))


@kernel_op("topk_attention_cpu_backward", key="CPU")
def _backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v, [B, H, N, dh] each."""
    dtype = q.dtype
    grad, q, k, v = wide = widen(grad, q, k, v)
    grads = [torch.empty(q.shape, dtype=q.dtype) for _ in range(3)]
    shape, _ = shape_of(q.shape)
    topk = index.shape[-1]
    saved = index.contiguous(), weights.contiguous()
    _backward(q.dtype, shape, topk, *wide, strides(*wide), *saved, *grads)
    grad_q, grad_k, grad_v = (x.to(dtype) for x in grads)
    return grad_q, grad_k, grad_v


@_backward_op.register_fake
def _(grad: Tensor, q: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


_backward_op.register_formula(gradients, inputs=4)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, index, weights = output
    ctx.save_for_backward(*inputs[:3], index, weights)
    ctx.mark_non_differentiable(index, weights)


def _gradients(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_op(grad, *ctx.saved_tensors), None, None, None, None


_op.register_autograd(_gradients, setup_context=_setup)

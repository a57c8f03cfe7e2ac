"""Attention to the selected key blocks in native code: nothing is gathered, scores stay in cache.

The forward saves which blocks are kept and the logarithm of each query's sum of exponentials.

Shapes: B batch, H heads, N tokens, dh width of a head, G blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops._cpu.heads import shape_of, strides, widen
from flashmix.ops._cpu.library import DATA, FLAG, INT, ROWS, SHAPE, STRIDES, Kernel
from flashmix.ops._library import kernel_op
from flashmix.ops._precision import transform_dtype
from flashmix.ops.block_topk_attention import blocks, reference

_QKV, _OUT = (ROWS, ROWS, ROWS), (DATA, DATA, DATA)
_forward = Kernel("block_forward", SHAPE, INT, FLAG, DATA, *_QKV, STRIDES, DATA, DATA)
_backward = Kernel("block_backward", SHAPE, INT, FLAG, DATA, ROWS, *_QKV, STRIDES, DATA, *_OUT)


def block_topk_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    """Block top-k attention, [B, H, N, dh]."""
    y: Tensor = _op(q, k, v, mask, topk, causal)[0]
    return y


def _select(q: Tensor, k: Tensor, mask: Tensor | None, topk: int, causal: bool) -> Tensor:
    (q, k, _), lengths = blocks.pack_blocks(q, k, k, mask)
    return blocks.select_blocks(q, k, lengths, topk, causal).contiguous()


@kernel_op("block_topk_attention_cpu", key="CPU")
def _op(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, each query's logarithm of its sum of exponentials, and the kept blocks."""
    kept = _select(q, k, mask, topk, causal)
    dtype = q.dtype
    q, k, v = widen(q, k, v)
    y = torch.empty(q.shape, dtype=q.dtype)
    logarithm = torch.empty(q.shape[:3], dtype=q.dtype)
    shape, _alive = shape_of(q.shape, mask)
    at = strides(q, k, v)
    _forward(q.dtype, shape, blocks.BLOCK, causal, kept, q, k, v, at, y, logarithm)
    return y.to(dtype), logarithm, kept


@_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, n = q.shape[:3]
    groups = -(-n // blocks.BLOCK)
    return (
        q.new_empty(q.shape),
        q.new_empty((batch, heads, n), dtype=transform_dtype(q.dtype)),
        q.new_empty((batch, heads, groups, groups), dtype=torch.bool),
    )


_op.register_formula(reference.widened)


@kernel_op("block_topk_attention_cpu_backward", key="CPU")
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logarithm: Tensor,
    kept: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v, [B, H, N, dh] each."""
    wide = widen(grad, q, k, v)
    grads = [torch.empty(q.shape, dtype=logarithm.dtype) for _ in range(3)]
    shape, _alive = shape_of(q.shape, mask)
    how = (blocks.BLOCK, causal, kept.contiguous())
    saved = logarithm.contiguous()
    _backward(saved.dtype, shape, *how, *wide, strides(*wide), saved, *grads)
    grad_q, grad_k, grad_v = (x.to(q.dtype) for x in grads)
    return grad_q, grad_k, grad_v


@_backward_op.register_fake
def _(grad: Tensor, q: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _backward_formula(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, logarithm: Tensor, *rest: Any
) -> Any:
    return reference.gradients(grad, q, k, v, *rest)


_backward_op.register_formula(_backward_formula, inputs=4)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *qkv, mask, _, ctx.causal = inputs
    _, logarithm, kept = output
    ctx.save_for_backward(*qkv, logarithm, kept, mask)
    ctx.mark_non_differentiable(logarithm, kept)


def _gradients(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_op(grad, *ctx.saved_tensors, ctx.causal), None, None, None


_op.register_autograd(_gradients, setup_context=_setup)

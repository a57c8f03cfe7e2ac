"""Block top-k attention on tensor cores: each block of queries visits the key blocks it chose.

The means of blocks are taken by a kernel, the choice among them by PyTorch. The backward computes
the weights again from the output and one logarithm a query; each sum has one owner and one order,
so the same input gives the same bits, backward included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._triton.heads import empty_bnhd
from flashmix.ops.block_topk_attention import blocks, reference
from flashmix.ops.block_topk_attention.triton import launch


def block_topk_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    """Block top-k attention, [B, H, N, dh]; k and v may have fewer heads."""
    y: Tensor = _op(q, k, v, mask, topk, causal)[0]
    return y


@kernel_op("block_topk_attention_triton")
def _op(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the base-2 logarithms [B, H, N], and the blocks chosen [B, H, G, S]."""
    return launch.forward(q, k, v, mask, topk, causal)


@_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, n, _ = q.shape
    chosen = (batch, heads, -(-n // blocks.BLOCK), blocks.blocks_needed(n, topk))
    return (
        empty_bnhd(q),
        q.new_empty(q.shape[:3], dtype=torch.float32),
        q.new_empty(chosen, dtype=torch.int32),
    )


_op.register_formula(reference.widened)


@kernel_op("block_topk_attention_triton_backward")
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    logarithm: Tensor,
    chosen: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v."""
    return launch.backward(grad, q, k, v, y, logarithm, chosen, mask, causal)


@_backward_op.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    logarithm: Tensor,
    chosen: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_bnhd(q), empty_bnhd(k), empty_bnhd(v)


def _backward_formula(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    logarithm: Tensor,
    chosen: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> Any:
    groups = torch.arange(chosen.shape[2], device=q.device)
    kept = (chosen[..., None] == groups).any(-2)
    return reference.gradients(grad, q, k, v, kept, mask, causal)


_backward_op.register_formula(_backward_formula, inputs=4)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *qkv, mask, _, ctx.causal = inputs
    ctx.save_for_backward(*qkv, *output, mask)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *saved, mask = ctx.saved_tensors
    return *_backward_op(grad, *saved, mask, ctx.causal), None, None, None


_op.register_autograd(_backward, setup_context=_setup)

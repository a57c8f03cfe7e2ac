"""Launching the kernels of block top-k attention.

Shapes: B batch, H heads of queries, K heads of keys and values, N tokens, dh width of a head, G
blocks, S blocks chosen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops._dense import repeat_heads
from flashmix.ops._triton.heads import (
    LOG2_E,
    Packing,
    empty_bnhd,
    ensure_contiguous_last_dim,
    packing,
    strides,
    weight_sums,
)
from flashmix.ops._triton.inverted_index import inverted_index
from flashmix.ops._triton.launch import padded, precision
from flashmix.ops.block_topk_attention import blocks
from flashmix.ops.block_topk_attention.triton.kernels import (
    forward_kernel,
    key_grad_kernel,
    pool_kernel,
    query_grad_kernel,
)


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, base-2 logarithms of sums, float32 [B, H, N], and blocks, int32 [B, H, G, S].

    The output is token-major. Behind the last block that a block of queries has chosen stands -1.
    """
    batch, heads, n, width = q.shape
    q, k, v = ensure_contiguous_last_dim(q, k, v)
    real = packing(mask)
    y = empty_bnhd(q)
    logarithm = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    chosen = _choose(q, k, real, topk, causal)
    if y.numel():
        forward_kernel[(batch * heads * chosen.shape[2] * _parts(q),)](
            q,
            k,
            v,
            chosen,
            _counts(chosen),
            y,
            logarithm,
            real.order,
            real.lengths,
            *strides(q, k, v, y),
            width**-0.5 * LOG2_E,
            heads,
            heads // k.shape[1],
            n,
            chosen.shape[3],
            **_options(q, real, causal),
        )
    return y, logarithm, chosen


def _counts(chosen: Tensor) -> Tensor:
    return (chosen >= 0).sum(-1, dtype=torch.int32)


def _tiles(x: Tensor, real: Packing, parts: int) -> dict[str, Any]:
    width = x.shape[3]
    return {
        "D": width,
        "DP": padded(width),
        "BLOCK": blocks.BLOCK,
        "TILE": padded(blocks.BLOCK) // parts,
        "PACKED": real.packed,
    }


def _parts(x: Tensor) -> int:
    """Tiles of a block: rows of many bytes leave room for a part of one."""
    row = padded(x.shape[3]) * x.dtype.itemsize
    return min(4 if row > 512 else 2 if row > 256 else 1, padded(blocks.BLOCK) // 16)


def _options(x: Tensor, real: Packing, causal: bool) -> dict[str, Any]:
    """What the kernels that attend are compiled for."""
    row = padded(x.shape[3]) * x.dtype.itemsize
    return {
        **_tiles(x, real, _parts(x)),
        "PARTS": _parts(x),
        "CAUSAL": causal,
        "PRECISION": precision(x.dtype),
        "num_warps": 4 if row <= 128 else 8,
        "num_stages": 2 if row <= 256 else 1,
    }


def _pooled(x: Tensor, real: Packing, first: bool) -> Tensor:
    """What represents each block, float32 [B, H, G, dh]."""
    batch, heads, n, width = x.shape
    groups = -(-n // blocks.BLOCK)
    pooled = torch.empty((batch, heads, groups, width), dtype=torch.float32, device=x.device)
    if pooled.numel():
        pool_kernel[(batch * heads * groups,)](
            x,
            pooled,
            real.order,
            real.lengths,
            *strides(x),
            heads,
            n,
            FIRST=first,
            num_warps=4,
            **_tiles(x, real, 1),
        )
    return pooled


def _choose(q: Tensor, k: Tensor, real: Packing, topk: int, causal: bool) -> Tensor:
    """The blocks chosen, int32 [B, H, G, S]."""
    batch, n = q.shape[0], q.shape[2]
    pooled_q, pooled_k = _pooled(q, real, causal), _pooled(k, real, False)
    lengths = real.lengths
    if lengths is None:
        lengths = torch.full((batch,), n, device=q.device)
    filled = blocks.filled_slots(lengths, pooled_q.shape[2], blocks.BLOCK)
    pooled_k, _ = repeat_heads(pooled_q, pooled_k, pooled_k)
    chosen, possible = blocks.choose_blocks(pooled_q, pooled_k, filled, n, topk, causal)
    return chosen.masked_fill(~possible, -1).int().contiguous()


def backward(
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
    """Gradients with respect to q, k and v, token-major."""
    batch, heads, n, width = q.shape
    q, k, v, grad = ensure_contiguous_last_dim(q, k, v, grad)
    logarithm, chosen = logarithm.contiguous(), chosen.contiguous()
    grads = grad_q, grad_k, grad_v = empty_bnhd(q), empty_bnhd(k), empty_bnhd(v)
    if not y.numel():
        return grads
    groups, selected = chosen.shape[2:]
    group = heads // k.shape[1]
    real = packing(mask)
    delta = weight_sums(y, grad)
    inputs = (real.order, real.lengths, *strides(q, k, v, grad))
    sizes = (width**-0.5, width**-0.5 * LOG2_E, heads, group, n, selected)
    options = _options(q, real, causal)
    query_grad_kernel[(batch * heads * groups * _parts(q),)](
        q,
        k,
        v,
        grad,
        chosen,
        _counts(chosen),
        logarithm,
        delta,
        grad_q,
        *inputs,
        *strides(grad_q),
        *sizes,
        **options,
    )
    pairs, offsets = inverted_index(chosen, groups, group)
    key_grad_kernel[(batch * k.shape[1] * groups * _parts(q),)](
        q,
        k,
        v,
        grad,
        pairs,
        offsets,
        logarithm,
        delta,
        grad_k,
        grad_v,
        *inputs,
        *strides(grad_k, grad_v),
        *sizes,
        **options,
    )
    return grads

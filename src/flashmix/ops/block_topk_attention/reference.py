"""Attention to the selected key blocks, with the N x N weights in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops import _dense
from flashmix.ops._derivatives import vjp
from flashmix.ops._padding import refuse_trace
from flashmix.ops.block_topk_attention import blocks


def block_topk_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    """Block top-k attention, [B, H, N, dh]."""
    return block_topk_attention_and_weights(q, k, v, mask, topk, causal)[0]


def widened(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    """As :func:`block_topk_attention`, computed as kernels do; see :func:`_dense.widened`."""
    return _dense.widened(block_topk_attention, q, k, v, mask, topk, causal)


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, mask: Tensor | None, causal: bool
) -> Any:
    """Those of q, k and v where the blocks are chosen, that can be differentiated again."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_blocks(q, k, v, kept, mask, causal)[0]

    return vjp(lambda *qkv: _dense.widened(run, *qkv), (q, k, v), grad)


def block_topk_attention_and_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """The output and the weights [B, H, N, N]."""
    refuse_trace()
    (q_blocks, k_blocks, _), lengths = blocks.pack_blocks(q, k, v, mask)
    kept = blocks.select_blocks(q_blocks, k_blocks, lengths, topk, causal)
    return attend_blocks(q, k, v, kept, mask, causal)


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """The output and the weights, of the blocks that ``kept`` [B, H, G, G] names."""
    n = q.shape[2]
    rank = torch.arange(n, device=q.device)[None]
    if mask is not None:
        rank = mask.cumsum(1).sub(1).clamp(min=0)
    block = (rank // blocks.BLOCK)[:, None].expand(q.shape[0], q.shape[1], n)
    rows = kept.gather(2, block[..., None].expand(-1, -1, -1, kept.shape[-1]))
    chosen = rows.gather(3, block[:, :, None].expand(-1, -1, n, -1))
    q, k, v = _dense.zero_qkv(q, k, v, mask)
    allowed = chosen & _dense.real_pairs(n, mask, causal, q.device)
    return _dense.attend(_dense.scores(q, k), v, allowed, mask)

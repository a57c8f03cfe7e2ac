"""Attention to the selected key blocks, gathered for each block of queries.

Work and memory are O(N * topk), beside the G x G pooled scores.

Shapes: B batch, H heads, N tokens, dh width of a head, G blocks of C tokens, S blocks selected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._fused import sdpa
from flashmix.ops._library import composite_op
from flashmix.ops.block_topk_attention import reference
from flashmix.ops.block_topk_attention.blocks import (
    BLOCK,
    blocks_needed,
    pack_blocks,
    select_blocks,
    unpack_tokens,
)


@composite_op(
    "block_topk_attention_torch(Tensor q, Tensor k, Tensor v, Tensor? mask, SymInt topk,"
    " bool causal) -> Tensor",
    reference.block_topk_attention,
)
def block_topk_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    """Block top-k attention, [B, H, N, dh]."""
    batch, heads, n, dh = q.shape
    (q, k, v), lengths = pack_blocks(q, k, v, mask)
    groups = q.shape[2]
    kept = select_blocks(q, k, lengths, topk, causal)
    # The kept blocks first, in order; a query block with fewer repeats others, hidden below.
    chosen = torch.argsort(~kept, dim=-1, stable=True)[..., : blocks_needed(n, topk)]
    selected = chosen.shape[-1]
    index = chosen.flatten(2)[..., None, None].expand(-1, -1, -1, BLOCK, dh)
    keys, values = (
        x.gather(2, index).reshape(batch * heads * groups, 1, selected * BLOCK, dh) for x in (k, v)
    )

    position = chosen[..., None] * BLOCK + torch.arange(BLOCK, device=q.device)
    allowed = kept.gather(-1, chosen)[..., None] & (position < lengths[:, None, None, None, None])
    allowed = allowed.flatten(3)[:, :, :, None, :]
    if causal:
        query = torch.arange(groups * BLOCK, device=q.device).view(groups, BLOCK, 1)
        allowed = allowed & (position.flatten(3)[:, :, :, None, :] <= query)
    # Queries at padding may see nothing; they see all instead, and their outputs are zeroed.
    allowed = allowed | ~allowed.any(-1, keepdim=True)
    allowed = allowed.expand(-1, -1, -1, BLOCK, -1).reshape(-1, 1, BLOCK, selected * BLOCK)
    y = sdpa("block_topk_attention", q.reshape(-1, 1, BLOCK, dh), keys, values, allowed)
    return unpack_tokens(y.view(batch, heads, groups * BLOCK, dh)[:, :, :n], mask)

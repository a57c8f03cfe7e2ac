"""Which key blocks each block of queries keeps.

Tokens are taken in blocks of BLOCK, padding removed. Keys are pooled by the mean of their block;
queries by their mean too, or when causal by the block's first query, which every query of the
block may know. The blocks with the highest pooled scores are kept, enough of them to hold ``topk``
keys, ties to the lower block. Scores are PyTorch's batched product, whose summation order may
depend on the batch: blocks whose scores differ by its rounding alone may be chosen otherwise.
Causal queries see earlier blocks, and always their own.

Shapes: B batch, H heads, N tokens, dh width of a head, G blocks of C tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.ops._dense import zero_qkv
from flashmix.ops._padding import real_first
from flashmix.ops._precision import full_precision, transform_dtype

BLOCK = 64


def blocks_needed(n: int, topk: int) -> int:
    """Blocks that hold ``topk`` keys, of those that ``n`` tokens have."""
    return min(-(-n // BLOCK), -(-topk // BLOCK))


def pack_blocks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """q, k, v [B, H, N, dh] as blocks of real tokens [B, H, G, C, dh], and true lengths [B]."""
    batch, n = q.shape[0], q.shape[2]
    if mask is None:
        lengths = torch.full((batch,), n, device=q.device)
    else:
        lengths = mask.sum(1)
        order = real_first(mask)[:, None, :, None].expand_as(q)
        q, k, v = (x.gather(2, order) for x in zero_qkv(q, k, v, mask))
    groups = -(-n // BLOCK)
    if n % BLOCK:
        q, k, v = (F.pad(x, (0, 0, 0, groups * BLOCK - n)) for x in (q, k, v))
    q, k, v = (x.unflatten(2, (groups, BLOCK)) for x in (q, k, v))
    return (q, k, v), lengths


def unpack_tokens(y: Tensor, mask: Tensor | None) -> Tensor:
    """Undo the packing of y [B, H, N, dh], with zeros at padding."""
    if mask is None:
        return y
    real = torch.arange(y.shape[2], device=y.device) < mask.sum(1, keepdim=True)
    y = y.masked_fill(~real[:, None, :, None], 0)
    return torch.zeros_like(y).scatter(2, real_first(mask)[:, None, :, None].expand_as(y), y)


def select_blocks(q: Tensor, k: Tensor, lengths: Tensor, topk: int, causal: bool) -> Tensor:
    """The key blocks each block of queries keeps, bool [B, H, G, G].

    Args:
        q, k: [B, H, G, C, dh], zeros beyond ``lengths``.
        lengths: real tokens of each sequence, int64 [B].
    """
    groups, size = q.shape[2:4]
    filled = filled_slots(lengths, groups, size)
    real = filled.clamp(min=1)[:, None, :, None]
    wide = transform_dtype(q.dtype)
    pooled_k = k.sum(3, dtype=wide) / real
    pooled_q = q[:, :, :, 0].to(wide) if causal else q.sum(3, dtype=wide) / real
    chosen, possible = choose_blocks(pooled_q, pooled_k, filled, groups * size, topk, causal)
    kept = possible.new_zeros((*possible.shape[:3], groups))
    return kept.scatter(-1, chosen, possible)


def filled_slots(lengths: Tensor, groups: int, size: int) -> Tensor:
    """Real tokens in each block, int64 [B, G]."""
    start = torch.arange(groups, device=lengths.device) * size
    return (lengths[:, None] - start).clamp(0, size)


def choose_blocks(
    pooled_q: Tensor, pooled_k: Tensor, filled: Tensor, n: int, topk: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """The key blocks each block of queries keeps, the best first.

    Args:
        pooled_q, pooled_k: float32 or float64 [B, H, G, dh].
        filled: real tokens in each block, int64 [B, G].
        n: tokens.
        topk: keys to hold.
        causal: whether later blocks are hidden.

    Returns:
        Blocks, int64 [B, H, G, S], and which of them may be seen; those come first.
    """
    groups = filled.shape[1]
    with full_precision(pooled_q.device):
        scores = pooled_q @ pooled_k.transpose(2, 3)
    possible = (filled > 0)[:, None, None, :].expand_as(scores)
    if causal:
        own = torch.eye(groups, dtype=torch.bool, device=filled.device)
        possible = possible.tril()
        scores = scores.masked_fill(own, float("inf"))
    scores = scores.masked_fill(~possible, float("-inf"))
    order = scores.argsort(dim=-1, descending=True, stable=True)
    chosen = order[..., : blocks_needed(n, topk)]
    return chosen, possible.gather(-1, chosen)

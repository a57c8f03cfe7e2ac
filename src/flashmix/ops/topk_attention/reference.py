"""Attention to the k highest-scoring keys of each query and head.

Scores are accumulated in float32 (float64 for float64 inputs). Exactly k keys are kept, all of
them where there are fewer; ties go to the lower index. Gradients flow through kept scores only.

Shapes: B batch, H heads, N tokens, dh width of a head.
"""

from __future__ import annotations

from torch import Tensor

from flashmix.ops import _dense
from flashmix.ops._precision import full_precision, transform_dtype


def topk_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    """Exact top-k attention, [B, H, N, dh]."""
    return topk_attention_and_weights(q, k, v, mask, topk, causal)[0]


def topk_attention_and_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """The output and the weights [B, H, N, N]."""
    q, k, v = _dense.zero_qkv(q, k, v, mask)
    wide = transform_dtype(q.dtype)
    with full_precision(q.device):
        scores = _dense.scores(q.to(wide), k.to(wide))
    allowed = _dense.real_pairs(q.shape[2], mask, causal, q.device).expand_as(scores)
    order = scores.masked_fill(~allowed, float("-inf")).argsort(
        dim=-1, descending=True, stable=True
    )
    # The inverse of the order is each key's rank.
    kept = order.argsort(dim=-1) < topk
    return _dense.attend(scores, v, allowed & kept, mask)

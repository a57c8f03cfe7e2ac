"""Attention through PyTorch's fused ``scaled_dot_product_attention``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.ops import _dense
from flashmix.ops._library import composite_op
from flashmix.ops._padding import zero_head_padding
from flashmix.ops.attention import reference


@composite_op(
    "attention_torch(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal) -> Tensor",
    reference.attention,
)
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(dh)) v, [B, H, N, dh]."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    q, k, v = _dense.zero_qkv(q, k, v, mask)
    # A sequence of padding alone sees its zeros rather than nothing: no NaN, and zeroed below.
    allowed = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
    if causal:
        n = q.shape[2]
        square = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        # Left padding leaves early rows without a real key; each may see itself, zeroed below.
        allowed = (allowed & square) | torch.eye(n, dtype=torch.bool, device=q.device)
    return zero_head_padding(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed), mask)

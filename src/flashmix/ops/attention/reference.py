"""Scaled dot-product attention as in Vaswani et al. 2017, equation 1; N x N weights in memory.

This is the "naive" attention of benchmarks: it computes in the dtype of its inputs.
"""

from __future__ import annotations

from torch import Tensor

from flashmix.ops import _dense


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(dh)) v, [B, H, N, dh]."""
    return attention_and_weights(q, k, v, mask, causal)[0]


def attention_and_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """The output and the weights [B, H, N, N]."""
    q, k, v = _dense.zero_qkv(q, k, v, mask)
    restricted = causal or mask is not None
    allowed = _dense.real_pairs(q.shape[2], mask, causal, q.device) if restricted else None
    return _dense.attend(_dense.scores(q, k), v, allowed, mask)

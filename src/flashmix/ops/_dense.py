"""Softmax attention with the N x N weights in memory: the formula that the references share.

Shapes: B batch, H heads, N tokens, dh width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashmix.ops._padding import real_rank, zero_head_padding
from flashmix.ops._precision import full_precision, transform_dtype


def scores(q: Tensor, k: Tensor) -> Tensor:
    """Q k^T / sqrt(dh), [B, H, N, N]."""
    return (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)


def distance(seq_len: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """I - j counted in real tokens, [1 or B, 1, N, N]; entries at padding mean nothing."""
    rank = torch.arange(seq_len, device=device)[None] if mask is None else real_rank(mask)
    return (rank[:, :, None] - rank[:, None, :])[:, None]


def real_pairs(seq_len: int, mask: Tensor | None, causal: bool, device: torch.device) -> Tensor:
    """Which key each query may see at all, bool [1 or B, 1, N, N]."""
    allowed = torch.ones(1, 1, seq_len, seq_len, dtype=torch.bool, device=device)
    if causal:
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask[:, None, None, :] & mask[:, None, :, None]
    return allowed


def attend(
    scores: Tensor, v: Tensor, allowed: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """softmax(scores where allowed) v and the weights; a query with no key gets zeros.

    Args:
        scores: [B, H, N, N].
        v: [B, H, N, dh].
        allowed: bool, broadcasts to ``scores``; None where every query sees every key.
        mask: bool [B, N]; outputs at padding pass no gradient on.
    """
    if allowed is None:
        weights = scores.softmax(-1).to(v.dtype)
        return weights @ v, weights
    empty = ~allowed.any(-1, keepdim=True)
    weights = scores.masked_fill(~allowed, float("-inf")).masked_fill(empty, 0).softmax(-1)
    weights = weights.masked_fill(~allowed, 0).to(v.dtype)
    return zero_head_padding(weights @ v, mask), weights


def widened(run: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *options: Any) -> Tensor:
    """``run(q, k, v, *options)`` in float32 at least, as kernels compute; heads may be shared."""
    wide = transform_dtype(q.dtype)
    k, v = repeat_heads(q, k, v)
    with full_precision(q.device):
        return run(q.to(wide), k.to(wide), v.to(wide), *options).to(q.dtype)


def zero_qkv(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with zeros at padding, so that nothing there (NaN included) reaches a product."""
    return zero_head_padding(q, mask), zero_head_padding(k, mask), zero_head_padding(v, mask)


def repeat_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """K and v with as many heads as q: head h of q reads head h // (H / K) of their K.

    Heads stand on axis 1, of [B, H, N, dh] and of packed [T, H, dh].
    """
    group = q.shape[1] // k.shape[1]
    if group == 1:
        return k, v
    k, v = (x[:, :, None].expand(-1, -1, group, *x.shape[2:]).flatten(1, 2) for x in (k, v))
    return k, v

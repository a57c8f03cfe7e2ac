"""Attention through PyTorch's fused ``scaled_dot_product_attention``."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from flashmix.ops import _dense
from flashmix.ops._compile import constant_in_graphs
from flashmix.ops._fused import sdpa
from flashmix.ops._library import composite_op
from flashmix.ops._packed import through_padding
from flashmix.ops._padding import zero_head_padding
from flashmix.ops.attention import reference


@composite_op(
    "attention_torch(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal) -> Tensor",
    reference.attention,
)
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(dh)) v, [B, H, N, dh]."""
    if mask is None:
        return sdpa("attention", q, k, v, causal=causal)
    q, k, v = _dense.zero_qkv(q, k, v, mask)
    # A sequence of padding alone sees its zeros rather than nothing: no NaN, and zeroed below.
    allowed = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
    if causal:
        n = q.shape[2]
        square = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        # Left padding leaves early rows without a real key; each may see itself, zeroed below.
        allowed = (allowed & square) | torch.eye(n, dtype=torch.bool, device=q.device)
    return zero_head_padding(sdpa("attention", q, k, v, allowed), mask)


def packed(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int | None, causal: bool
) -> Tensor:
    """Attention within packed sequences, [T, H, dh], by what PyTorch has for each device."""
    plain = forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()
    if plain and _has_varlen(q):
        longest = len(q) if max_seqlen is None else max_seqlen
        return _varlen(q, k, v, cu_seqlens, longest, causal)
    if plain and q.device.type == "cpu" and not torch.compiler.is_compiling():
        return _each_sequence(q, k, v, cu_seqlens, causal)
    return through_padding(
        lambda *padded: attention(*padded, causal), cu_seqlens, max_seqlen, q, k, v
    )


def _each_sequence(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, causal: bool) -> Tensor:
    """One call a sequence: on a processor that costs less than to multiply padding."""
    lengths = [length for length in cu_seqlens.diff().tolist() if length]
    if not lengths:
        return q + k + v  # nothing, but within autograd's graph
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    ys = [
        sdpa("attention", q, k, v, causal=causal)
        for q, k, v in ((x.transpose(0, 1)[None] for x in qkv) for qkv in parts)
    ]
    return torch.cat([y[0].transpose(0, 1) for y in ys])


@constant_in_graphs
def _ampere(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _has_varlen(q: Tensor) -> bool:
    """Whether FlashAttention, as PyTorch has it, takes packed heads [T, H, dh]."""
    return (
        _ampere(q.device)
        and torch.version.hip is None
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[2] % 8 == 0
        and q.shape[2] <= 256
        and len(q) > 0
    )


@constant_in_graphs
def _causal_option() -> dict[str, Any]:
    """What makes PyTorch's function causal, which changed its arguments with the releases."""
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    return {"is_causal": True} if "is_causal" in names else {"window_size": (-1, 0)}


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, causal: bool
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options = _causal_option() if causal else {}
    y: Any = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)
    return cast(Tensor, y)

"""Attention with what models add to it: relative positions, and dropout of the weights.

Shapes: B batch, H heads, N tokens, dh width of a head, D = H * dh.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmix.errors import ModelError
from flashmix.mixers import Attention, LocalAttention, Mixer
from flashmix.ops import _dense
from flashmix.ops._padding import zero_padding


def mixer_of(module: nn.Module) -> Mixer | None:
    """The mixer in an attention module, also within a wrapper, such as PEFT's; None without one."""
    mixer: Any = getattr(module, "mixer", None)
    if mixer is None or isinstance(mixer, Mixer):
        return mixer
    return next((one for one in mixer.modules() if isinstance(one, Mixer)), None)


def takes_relative_positions(mixer: Mixer) -> bool:
    """Whether the mixer has scores to which relative positions can be added."""
    return isinstance(mixer, Attention | LocalAttention)


def dropout_attention(
    mixer: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Attention with dropout of its weights, of q, k, v [B, H, N, dh], as [B, N, D]."""
    # A sequence of padding alone sees everything rather than nothing, which would be NaN.
    seen = None if mask is None else (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
    return zero_padding(_attend(q, k, v, seen, dropout, mixer.impl), mask)


def relative_attention(
    mixer: Mixer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor,
    dropout: float,
) -> Tensor:
    """Full or local attention with ``bias`` added to its scores, as [B, N, D].

    Args:
        mixer: says which of the two, and the window.
        q, k, v: [B, H, N, dh].
        mask: bool [B, N], True = a real token.
        bias: [1 or B, H, N, N]; local attention takes O(N^2) memory here, as the bias does.
        dropout: probability with which a weight is dropped.

    Raises:
        ModelError: the mixer has no scores to add to, or chooses tokens by them.
    """
    if not takes_relative_positions(mixer):
        raise ModelError(
            "relative positions are added to scores, which attention and local have and "
            f"{type(mixer).__name__} has not"
        )
    n = q.shape[2]
    seen = _dense.real_pairs(n, mask, False, q.device)
    if isinstance(mixer, LocalAttention):
        seen = seen & (_dense.distance(n, mask, q.device).abs() <= mixer.window // 2)
    # Padding sees itself rather than nothing, which would be NaN.
    seen = seen | torch.eye(n, dtype=torch.bool, device=q.device)
    added = bias.to(q.dtype).masked_fill(~seen, float("-inf"))
    impl = mixer.impl if isinstance(mixer, Attention) else "auto"
    return zero_padding(_attend(q, k, v, added, dropout, impl), mask)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: float, impl: str
) -> Tensor:
    """Attention; ``allowed`` broadcasts to [B, H, N, N] and is bool, or added to the scores."""
    if impl in ("reference", "naive"):
        scores = _dense.scores(q, k)
        if allowed is not None and allowed.dtype == torch.bool:
            scores = scores.masked_fill(~allowed, float("-inf"))
        elif allowed is not None:
            scores = scores + allowed
        y = F.dropout(scores.softmax(-1), dropout).to(v.dtype) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
    return y.transpose(1, 2).flatten(2)

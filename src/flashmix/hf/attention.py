"""Attention with what models add to it: relative positions, and dropout of the weights.

Shapes: B batch, H heads, N tokens, dh width of a head, D = H * dh.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmix.errors import ArgumentError, ModelError
from flashmix.mixers import Attention, LocalAttention, Mixer, MixerSpec
from flashmix.mixers._base import QKVMixer
from flashmix.ops import _dense
from flashmix.ops._padding import zero_head_padding, zero_padding

_OWN = "_flashmix_own"
LARGEST_QUERY = 1e4
"""At padding alone: what is larger there, or NaN, asks nothing."""


def mixer_of(module: nn.Module) -> Mixer | None:
    """The mixer in an attention module, also within a wrapper, such as PEFT's; None without one."""
    mixer: Any = getattr(module, "mixer", None)
    if mixer is None or isinstance(mixer, Mixer):
        return mixer
    return next((one for one in mixer.modules() if isinstance(one, Mixer)), None)


def check_projections(where: str, spec: MixerSpec, mixer: Mixer) -> None:
    """Raise ArgumentError where ``mixer`` shares heads of k and v, which a model's own q, k, v say.

    ``spec`` is what it was built from.
    """
    for part in mixer.modules():
        if isinstance(part, QKVMixer) and part.num_kv_heads != part.num_heads:
            raise ArgumentError(
                f"{where}: num_kv_heads of {spec} is an option of projections, and the model keeps "
                "its own; leave it out"
            )


def takes_relative_positions(mixer: Mixer) -> bool:
    """Whether the mixer has scores to which relative positions can be added."""
    return isinstance(mixer, Attention | LocalAttention)


def is_full(mixer: Mixer) -> TypeGuard[Attention]:
    """Whether every token sees every token, by scores."""
    return type(mixer) is Attention and not mixer.causal


def drops_weights(mixer: Mixer) -> bool:
    """Whether a layer's dropout applies to a mixer with a reach: to the layer's own attention."""
    return getattr(mixer, _OWN, False) or (type(mixer) is Attention and mixer.causal)


def own_attention(mixer: Mixer) -> Mixer:
    """``mixer`` noted as what "attention" means in a layer with a window of its own."""
    setattr(mixer, _OWN, True)
    return mixer


def full_attention(
    mixer: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Attention of q, k, v [B, H, N, dh] as models have it, [B, N, D].

    Padding asks too, and gets what it sees of the real tokens, since later code of a model may
    read it: convolutions, or a head that pools the last token. Nothing that stands in the padding
    reaches a real token.
    """
    tame, q, k, v = _shield(q, k, v, mask)
    return zero_padding(_attend(q, k, v, _real_keys(mask), dropout, mixer.impl), tame)


def _real_keys(mask: Tensor | None) -> Tensor | None:
    """The keys in view, bool [B, 1, 1, N]; a sequence of padding alone sees its zeros, not NaN."""
    return None if mask is None else (mask | ~mask.any(1, keepdim=True))[:, None, None, :]


def _shield(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Zeros for k and v at padding, and for q there where its scores would overflow.

    The first of the four is False at such queries, whose outputs are to be zero as well: what is
    not finite would reach the gradients of real tokens as 0 * NaN.
    """
    if mask is None:
        return None, q, k, v
    tame = mask | (q.detach().abs().amax((1, 3)) < LARGEST_QUERY)
    k, v = zero_head_padding(k, mask), zero_head_padding(v, mask)
    return tame, zero_head_padding(q, tame), k, v


def relative_attention(
    mixer: Mixer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """Full, causal or local attention with ``bias`` added to its scores, as [B, N, D].

    Args:
        mixer: says which of the two, and the window.
        q, k, v: [B, H, N, dh]; k and v may have fewer heads.
        mask: bool [B, N], True = a real token.
        bias: [1 or B, 1 or H, N, N], or None; local attention takes O(N^2) memory here, as it does.
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
    k, v = _dense.repeat_heads(q, k, v)
    tame, q, k, v = _shield(q, k, v, mask)
    bias = q.new_zeros(1, 1, 1, 1) if bias is None else bias.to(q.dtype)
    if is_full(mixer):
        keys = _real_keys(mask)
        added = bias if keys is None else bias.masked_fill(~keys, float("-inf"))
        return zero_padding(_attend(q, k, v, added, dropout, mixer.impl), tame)
    before, after = mixer.reach if isinstance(mixer, LocalAttention) else (n, 0)
    seen = _dense.real_pairs(n, mask, False, q.device)
    distance = _dense.distance(n, mask, q.device)
    seen = seen & (distance <= before) & (distance >= -after)
    # Padding sees itself rather than nothing, which would be NaN.
    seen = seen | torch.eye(n, dtype=torch.bool, device=q.device)
    added = bias.masked_fill(~seen, float("-inf"))
    return zero_padding(_attend(q, k, v, added, dropout, "auto"), mask)


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

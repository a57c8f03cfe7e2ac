"""Sliding-window attention: query i sees the keys j with i - before <= j <= i + after.

Distances count real tokens. Computes in the dtype of its inputs, with N x N weights in memory.
"""

from __future__ import annotations

from torch import Tensor

from flashmix.ops import _dense


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> Tensor:
    """Attention within the window, [B, H, N, dh]."""
    return local_attention_and_weights(q, k, v, mask, before, after)[0]


def widened(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> Tensor:
    """As :func:`local_attention`, computed as kernels do; see :func:`_dense.widened`."""
    return _dense.widened(local_attention, q, k, v, mask, before, after)


def local_attention_and_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> tuple[Tensor, Tensor]:
    """The output and the weights [B, H, N, N]."""
    q, k, v = _dense.zero_qkv(q, k, v, mask)
    distance = _dense.distance(q.shape[2], mask, q.device)
    near = (distance <= before) & (distance >= -after)
    allowed = near & _dense.real_pairs(q.shape[2], mask, False, q.device)
    return _dense.attend(_dense.scores(q, k), v, allowed, mask)

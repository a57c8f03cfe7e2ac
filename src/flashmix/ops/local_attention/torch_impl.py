"""Sliding-window attention in O(N * window): blocks of queries against overlapping blocks of keys.

Where few blocks would do, all keys at once, with a mask.

Shapes: B batch, H heads, N tokens, dh width of a head, G blocks of C queries, each against
S = C + reach before + reach after keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.ops._compile import kept_for_any
from flashmix.ops._fused import sdpa
from flashmix.ops._library import composite_op
from flashmix.ops._padding import real_first
from flashmix.ops.attention.torch_impl import attention
from flashmix.ops.local_attention import reference
from flashmix.ops.local_attention.window import sees_all

MIN_BLOCK = 64


def _blocks(x: Tensor, before: int, after: int, size: int, count: int) -> Tensor:
    """Overlapping blocks [G, B * H, S, dh] of ``x`` [B, H, N, dh], with zeros beyond its ends."""
    x = F.pad(x, (0, 0, before, count * size - x.shape[2] + after)).flatten(0, 1)
    return x.unfold(1, before + size + after, size).permute(1, 0, 3, 2)


def at_once(n: int, before: int, after: int) -> bool:
    """Whether one fused call with a mask does less work: a block's keys would be all keys."""
    return max(MIN_BLOCK, before, after) + before + after >= n


@composite_op(
    "local_attention_torch(Tensor q, Tensor k, Tensor v, Tensor? mask, SymInt before, SymInt after)"
    " -> Tensor",
    reference.local_attention,
)
def local_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> Tensor:
    """Attention within the window, [B, H, N, dh]."""
    n = q.shape[2]
    if sees_all(n, before, after):
        return attention(q, k, v, mask, after == 0)
    run = _masked if kept_for_any(n) or at_once(n, before, after) else _banded
    if mask is None:
        return run(q, k, v, None, before, after)
    # Real tokens first: distances then count real tokens wherever the padding stood.
    order = real_first(mask)[:, None, :, None].expand_as(q)
    real = (torch.arange(n, device=q.device) < mask.sum(1, keepdim=True))[:, None, :, None]
    q, k, v = (x.gather(2, order).masked_fill(~real, 0) for x in (q, k, v))
    y = run(q, k, v, mask.sum(1), before, after).masked_fill(~real, 0)
    return torch.zeros_like(y).scatter(2, order, y)


def _masked(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, before: int, after: int
) -> Tensor:
    """As :func:`_banded`, with an N x N mask."""
    n = q.shape[2]
    near = torch.ones(n, n, dtype=torch.bool, device=q.device)
    near = near.triu(-before).tril(after)
    if lengths is not None:
        present = torch.arange(n, device=q.device) < lengths[:, None, None, None]
        # Queries beyond the end would see nothing; the diagonal keeps them finite.
        near = (near & present) | torch.eye(n, dtype=torch.bool, device=q.device)
    return sdpa("local_attention", q, k, v, near)


def _banded(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, before: int, after: int
) -> Tensor:
    """Sliding window over packed sequences; keys at or beyond ``lengths`` [B] are padding."""
    batch, heads, n, width = q.shape
    size = max(MIN_BLOCK, before, after)
    count = -(-n // size)
    q_blocks = _blocks(q, 0, 0, size, count)
    k_blocks = _blocks(k, before, after, size, count)
    v_blocks = _blocks(v, before, after, size, count)

    query = torch.arange(size, device=q.device)[:, None]
    key = torch.arange(-before, size + after, device=q.device)
    near = (key >= query - before) & (key <= query + after)
    start = torch.arange(count, device=q.device)[:, None] * size
    position = start + key
    if lengths is None:
        present = ((position >= 0) & (position < n))[:, None]
    else:
        present = (position >= 0)[:, None] & (position[:, None] < lengths[:, None])
        present = present.repeat_interleave(heads, 1)
    # Queries beyond the end would see nothing; the diagonal keeps them finite, they are cut off.
    own = key == query
    allowed = (near & present[:, :, None, :]) | own
    y = sdpa("local_attention", q_blocks, k_blocks, v_blocks, allowed)
    return y.transpose(0, 1).reshape(batch, heads, count * size, width)[:, :, :n]

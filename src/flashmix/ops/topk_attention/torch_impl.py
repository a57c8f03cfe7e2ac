"""Exact top-k attention in chunks of queries; no N x N tensor is ever held.

The forward saves the k indices and weights of each query, O(N k); the backward gathers and
scatters those keys alone.

Shapes: P = B * H sequences of one head, N tokens, dh width of a head, C queries of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.ops._compile import kept_for_any
from flashmix.ops._dense import zero_qkv
from flashmix.ops._library import kernel_op
from flashmix.ops._padding import zero_head_padding
from flashmix.ops._precision import full_precision, transform_dtype
from flashmix.ops.attention.torch_impl import attention
from flashmix.ops.topk_attention import reference
from flashmix.ops.topk_attention.kept import gradients

# Elements of a chunk's scores: 8 MB of float32 on CPU stay near the cache, a GPU wants more work.
CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}


def topk_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    """Exact top-k attention, [B, H, N, dh]."""
    if not kept_for_any(q.shape[2]) and topk >= q.shape[2]:
        return attention(q, k, v, mask, causal)
    q, k, v = zero_qkv(q, k, v, mask)
    y: Tensor = _op(q, k, v, mask, topk, causal)[0]
    return zero_head_padding(y, mask)


def _chunks(
    sequences: int, n: int, row: int, device: torch.device
) -> Iterator[tuple[slice, slice]]:
    """Slices of sequences and of queries with at most CHUNK elements, ``row`` for each query."""
    budget = CHUNK[device.type]
    rows = max(1, min(n, budget // row))
    together = max(1, budget // (row * n)) if rows == n else 1
    for first in range(0, sequences, together):
        for start in range(0, n, rows):
            yield slice(first, min(first + together, sequences)), slice(start, min(start + rows, n))


def _lowest_ties(scores: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """``index`` with ties at the k-th value given to the lower keys, as ``torch.topk`` does not."""
    last = values.amin(-1, keepdim=True)
    tied = ((scores >= last).sum(-1) > index.shape[-1]) & (last.squeeze(-1) > float("-inf"))
    if tied.any():
        order = scores[tied].argsort(dim=-1, descending=True, stable=True)
        index[tied] = order[:, : index.shape[-1]]
    return index


def _select(scores: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Indices and softmax weights [P, C, k] of the highest ``scores`` [P, C, keys]."""
    values, index = scores.topk(min(topk, scores.shape[-1]), sorted=False)
    index = _lowest_ties(scores, values, index)
    weights = scores.gather(-1, index).softmax(-1).nan_to_num_(0)
    return index, weights


def _gather_sum(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sum over k of weights * table rows: table [P, N, dh], index and weights [P, C, k]."""
    p, n, dh = table.shape
    offset = torch.arange(p, device=table.device)[:, None, None] * n
    flat = (index + offset).flatten(0, 1)
    summed = F.embedding_bag(
        flat, table.reshape(p * n, dh), per_sample_weights=weights.flatten(0, 1), mode="sum"
    )
    return summed.view(p, -1, dh)


@kernel_op("topk_attention_torch", composed=True)
def _op(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the kept indices (int32) and weights [B, H, N, k]."""
    batch, heads, n, dh = q.shape
    wide = transform_dtype(q.dtype)
    qs, ks, vs = (x.reshape(-1, n, dh).to(wide) for x in (q, k, v))
    y = torch.empty(qs.shape, dtype=wide, device=q.device)
    index = torch.zeros(batch * heads, n, topk, dtype=torch.int32, device=q.device)
    weights = torch.zeros(batch * heads, n, topk, dtype=wide, device=q.device)
    hidden = None if mask is None else ~mask.repeat_interleave(heads, 0)
    for some, rows in _chunks(len(qs), n, n, q.device):
        keys = rows.stop if causal else n
        with full_precision(q.device):
            scores = (qs[some, rows] * dh**-0.5) @ ks[some, :keys].transpose(1, 2)
        if causal:
            position = torch.arange(keys, device=q.device)
            scores.masked_fill_(position > position[rows, None], float("-inf"))
        if hidden is not None:
            scores.masked_fill_(hidden[some, None, :keys], float("-inf"))
        kept, share = _select(scores, topk)
        y[some, rows] = _gather_sum(vs[some], kept, share)
        index[some, rows, : kept.shape[-1]] = kept.int()
        weights[some, rows, : kept.shape[-1]] = share
    shape = (batch, heads, n, topk)
    return y.view(q.shape).to(q.dtype), index.view(shape), weights.view(shape)


@_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kept = (*q.shape[:3], topk)
    wide = transform_dtype(q.dtype)
    return (
        q.new_empty(q.shape),
        q.new_empty(kept, dtype=torch.int32),
        q.new_empty(kept, dtype=wide),
    )


_op.register_formula(reference.topk_attention)


def _scatter_add(total: Tensor, index: Tensor, weights: Tensor, rows: Tensor) -> None:
    """Add weights * rows to ``total`` [P, N, dh] at ``index``; the same bits every time.

    index and weights [P, C, k], rows [P, C, dh].
    """
    p, n, dh = total.shape
    if total.device.type == "cpu":
        offset = torch.arange(p)[:, None, None] * n
        values = weights[..., None] * rows[:, :, None]
        total.view(p * n, dh).index_add_(0, (index + offset).flatten(), values.reshape(-1, dh))
        return
    # Atomic additions of whole rows come in any order; a scatter of distinct weights does not.
    dense = torch.zeros(p, rows.shape[1], n, dtype=total.dtype, device=total.device)
    with full_precision(total.device):
        total += dense.scatter_add_(-1, index, weights).transpose(1, 2) @ rows


@kernel_op("topk_attention_torch_backward", composed=True)
def _backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v, [B, H, N, dh] each."""
    n, dh = q.shape[2:]
    topk = index.shape[-1]
    wide = weights.dtype
    gs, qs, ks, vs = (x.reshape(-1, n, dh).to(wide) for x in (grad, q, k, v))
    kept_all, share_all = index.reshape(-1, n, topk), weights.reshape(-1, n, topk)
    grad_q, grad_k, grad_v = (
        torch.zeros(x.shape, dtype=wide, device=x.device) for x in (qs, ks, vs)
    )
    for some, rows in _chunks(len(qs), n, max(topk * dh, n if q.is_cuda else 0), q.device):
        kept, share, g = kept_all[some, rows].long(), share_all[some, rows], gs[some, rows]
        p = kept.shape[0]
        offset = torch.arange(p, device=q.device)[:, None, None] * n
        values = vs[some].flatten(0, 1)[kept + offset]
        with full_precision(q.device):
            grad_share = (values @ g[..., None]).squeeze(-1)
        grad_score = share * (grad_share - (share * grad_share).sum(-1, keepdim=True)) * dh**-0.5
        grad_q[some, rows] = _gather_sum(ks[some], kept, grad_score)
        _scatter_add(grad_k[some], kept, grad_score, qs[some, rows])
        _scatter_add(grad_v[some], kept, share, g)
    return tuple(x.view(q.shape).to(q.dtype) for x in (grad_q, grad_k, grad_v))  # type: ignore[return-value]


@_backward_op.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


_backward_op.register_formula(gradients, inputs=4)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, index, weights = output
    ctx.save_for_backward(*inputs[:3], index, weights)
    ctx.mark_non_differentiable(index, weights)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_op(grad, *ctx.saved_tensors), None, None, None


_op.register_autograd(_backward, setup_context=_setup)

"""Ring attention: keys and values pass from rank to rank, and each query keeps a running softmax.

Liu et al. 2023, with the online softmax of Milakov and Gimelshein 2018. Exact; a rank holds at most
three blocks of keys and values: its own, the block in use and the block that arrives. The backward
passes them round once more, with their gradients.

Shapes: B batch, H heads, n own tokens, s tokens of a rank, dh width of a head, C queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from flashmix.ops._padding import zero_head_padding
from flashmix.ops._precision import full_precision, transform_dtype
from flashmix.parallel.comm.first_order import first_order
from flashmix.parallel.comm.layout import Layout

MAX_SCORES = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Most scores in memory at a time."""


def ring_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(dh)) v over all tokens; q, k, v and the result [B, H, n, dh]."""
    mask = layout.own_mask
    q, k, v = (zero_head_padding(x, mask) for x in (q, k, v))
    y: Tensor = _Ring.apply(q, k, v, layout, causal)
    return zero_head_padding(y, mask)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, causal: bool) -> Tensor:
        wide = transform_dtype(q.dtype)
        y = torch.zeros_like(q, dtype=wide)
        row_max = torch.full_like(y[..., :1], float("-inf"))
        row_sum = torch.zeros_like(row_max)
        for source, (keys, values) in _circulate(torch.stack((k, v)), layout):
            for rows, scores in _scores(q, keys, layout, source, causal):
                new = torch.maximum(row_max[:, :, rows], scores.amax(-1, keepdim=True))
                base = new.masked_fill(new == float("-inf"), 0)
                weights = (scores - base).exp_()
                shrink = (row_max[:, :, rows] - base).exp_()
                row_max[:, :, rows] = new
                row_sum[:, :, rows] = row_sum[:, :, rows] * shrink + weights.sum(-1, keepdim=True)
                with full_precision(q.device):
                    y[:, :, rows] = y[:, :, rows] * shrink + weights @ values.to(wide)
        empty = row_sum == 0
        y = (y / row_sum.masked_fill(empty, 1)).to(q.dtype)
        # A query that sees no key gets lse = +inf, so that its weights are zero.
        ctx.save_for_backward(
            q, k, v, y, (row_max + row_sum.log()).masked_fill(empty, float("inf"))
        )
        ctx.layout, ctx.causal = layout, causal
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes them at each access
        found = first_order("attention", lambda: _gradients(ctx, grad, saved), grad, *saved)
        return *found, None, None


def _gradients(ctx: Any, grad: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, y, lse = saved
    layout: Layout = ctx.layout
    wide = lse.dtype
    scale = q.shape[-1] ** -0.5
    own = (grad.to(wide) * y.to(wide)).sum(-1, keepdim=True)
    grad_q = torch.zeros_like(q, dtype=wide)
    sums: Tensor | int = 0
    for source, block in _circulate(torch.stack((k, v)), layout):
        keys, values = block.to(wide)
        grads = torch.zeros_like(block, dtype=wide)
        for rows, scores in _scores(q, keys, layout, source, ctx.causal):
            upstream = grad[:, :, rows].to(wide)
            weights = scores.sub_(lse[:, :, rows]).exp_()
            with full_precision(q.device):
                grads[1] += weights.transpose(2, 3) @ upstream
                change = upstream @ values.transpose(2, 3)
                change = weights * (change - own[:, :, rows]) * scale
                grads[0] += change.transpose(2, 3) @ q[:, :, rows].to(wide)
                grad_q[:, :, rows] += change @ keys
        # The gradients that earlier ranks computed for this block arrive as the block did.
        sums = _start(grads + sums, layout, (source - 1) % layout.ranks.size)()
    grad_k, grad_v = cast(Tensor, sums)
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)


def _circulate(block: Tensor, layout: Layout) -> Iterator[tuple[int, Tensor]]:
    """(rank of origin, its ``block`` [..., s, dh]) for every rank, this rank's own first.

    The next block is received while the current one is used.
    """
    ranks = layout.ranks
    for step in range(ranks.size):
        source = (ranks.rank - step) % ranks.size
        last = step == ranks.size - 1
        arriving = None if last else _start(block, layout, (source - 1) % ranks.size)
        yield source, block
        if arriving is not None:
            block = arriving()


def _start(block: Tensor, layout: Layout, coming: int) -> Callable[[], Tensor]:
    """Start to send ``block`` to the next rank, and to receive the block of rank ``coming``."""
    ranks = layout.ranks
    shape = [*block.shape[:-2], layout.counts[coming], block.shape[-1]]
    parts = [block if r == (ranks.rank + 1) % ranks.size else block[:0] for r in range(ranks.size)]
    before = (ranks.rank - 1) % ranks.size
    sizes = [torch.Size(shape).numel() if r == before else 0 for r in range(ranks.size)]
    finish = ranks.start_all_to_all(parts, sizes)
    return lambda: finish()[before].view(shape)


def _scores(
    q: Tensor, keys: Tensor, layout: Layout, source: int, causal: bool
) -> Iterator[tuple[slice, Tensor]]:
    """(queries, scores [B, H, C, s] against the keys of rank ``source``, -inf where masked)."""
    if causal and source > layout.ranks.rank:
        return
    wide = transform_dtype(q.dtype)
    batch, heads, count, width = q.shape
    keys = keys.to(wide).transpose(2, 3)
    mask = layout.mask_of(source)
    rows = max(1, MAX_SCORES[q.device.type] // max(1, batch * heads * keys.shape[-1]))
    for start in range(0, count, rows):
        some = slice(start, min(start + rows, count))
        with full_precision(q.device):
            scores = (q[:, :, some].to(wide) * width**-0.5) @ keys
        if mask is not None:
            scores.masked_fill_(~mask[:, None, None], float("-inf"))
        if causal and source == layout.ranks.rank:
            query = torch.arange(some.start, some.stop, device=q.device)[:, None]
            later = torch.arange(keys.shape[-1], device=q.device) > query
            scores.masked_fill_(later, float("-inf"))
        yield some, scores


def ring_bytes(block: int, element: int, ranks: int, backward: bool) -> int:
    """Bytes that a rank sends in :func:`ring_attention`.

    Args:
        block: numbers in the keys and values of the longest slice.
        element: bytes of a number; gradients are sent in at least float32.
        ranks: P.
        backward: whether the backward is included.
    """
    forward = block * (ranks - 1) * element
    return 2 * forward + block * ranks * max(4, element) if backward else forward

"""Sliding-window attention across ranks without a copy of the slice.

A slice is mixed as if it were the whole sequence. Only its rows near an end see tokens of a
neighbour; they are computed again, in a short sequence of those tokens (the halo) and as many own
tokens as they see.

Shapes: B batch, H heads, n own tokens, R tokens in reach on each side, dh width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from flashmix.parallel.comm.layout import Layout

Run = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Heads = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _End:
    """One end of the slice, which the slice of rank ``neighbour`` adjoins.

    Attributes:
        own: the own tokens in the short sequence, as a slice of the own tokens.
        rows: those of them that see the halo.
        sent: the own tokens that the neighbour's rows see.
        before: whether the halo precedes the own tokens.
        halo: number of tokens in the halo.
    """

    neighbour: int
    own: slice
    rows: slice
    sent: slice
    before: bool
    halo: int

    @property
    def inner(self) -> slice:
        """``rows`` as a slice of the short sequence."""
        first = self.rows.start - self.own.start + self.halo * self.before
        return slice(first, first + self.rows.stop - self.rows.start)

    @property
    def beyond(self) -> slice:
        """The halo as a slice of the short sequence."""
        count = self.own.stop - self.own.start
        return slice(0, self.halo) if self.before else slice(count, count + self.halo)

    def joined(self, own: Tensor, halo: Tensor) -> Tensor:
        """The short sequence of keys or values: ``own`` [B, H, n, dh] joined with ``halo``."""
        own = own[:, :, self.own]
        return torch.cat((halo, own) if self.before else (own, halo), 2)

    def padded(self, own: Tensor) -> Tensor:
        """The short sequence of queries: zeros in the halo, whose rows are not used."""
        sides = (self.halo, 0) if self.before else (0, self.halo)
        return F.pad(own[:, :, self.own], (0, 0, *sides))


def ends_are_disjoint(reach: int, layout: Layout) -> bool:
    """Whether each row sees beyond at most one end of its slice, and no token is padding."""
    return layout.mask is None and min(layout.counts) >= 2 * reach > 0


def mix_ends_apart(
    run: Run,
    composite: Callable[..., Tensor],
    heads: Heads,
    reach: int,
    causal: bool,
    layout: Layout,
) -> Tensor:
    """The own rows [B, H, n, dh] of ``run(q, k, v, None)`` of all tokens.

    Args:
        run: sliding-window attention.
        composite: of own (q, k, v), the same result through differentiable collectives; used for
            second derivatives.
        heads: q, k, v, [B, H, n, dh] each.
        reach: R, for which :func:`ends_are_disjoint` holds.
        causal: whether later tokens are masked.
        layout: of the tokens.
    """
    ends = _ends(reach, causal, layout)
    return _ByEdges.apply(*heads, run, composite, ends, layout, torch.is_grad_enabled())


def _ends(reach: int, causal: bool, layout: Layout) -> list[_End]:
    rank, count = layout.ranks.rank, layout.counts[layout.ranks.rank]
    first, last = slice(0, reach), slice(count - reach, count)
    seen = reach if causal else 2 * reach
    ends = []
    if rank > 0:
        sent = slice(0, 0) if causal else first
        ends.append(_End(rank - 1, slice(0, seen), first, sent, True, reach))
    if rank < layout.ranks.size - 1:
        rows = slice(count, count) if causal else last
        own = rows if causal else slice(count - seen, count)
        ends.append(_End(rank + 1, own, rows, last, False, 0 if causal else reach))
    return ends


def _exchanged(
    ends: list[_End], parts: list[Tensor], counts: list[int], layout: Layout
) -> list[Tensor]:
    """Send ``parts`` to the neighbours; return their keys and values of ``counts`` tokens.

    Each is [2, B, H, tokens, dh].
    """
    if not ends:
        return []
    ranks, shape = layout.ranks, parts[0].shape
    row = math.prod(shape[:3]) * shape[4]
    outgoing = [parts[0].new_empty(0)] * ranks.size
    sizes = [0] * ranks.size
    for end, part, count in zip(ends, parts, counts, strict=True):
        outgoing[end.neighbour], sizes[end.neighbour] = part, row * count
    come = ranks.all_to_all(outgoing, sizes)
    return [
        come[end.neighbour].view(*shape[:3], count, shape[4])
        for end, count in zip(ends, counts, strict=True)
    ]


@dataclass(frozen=True)
class _Mixed:
    """The autograd graph of a call: its inputs, and the edge where the output's gradient enters."""

    inputs: Heads
    edge: GradientEdge

    def gradients(self, upstream: Tensor) -> Heads:
        """Gradients of the inputs; the graph is kept for a second backward."""
        q, k, v = torch.autograd.grad([self.edge], self.inputs, [upstream], retain_graph=True)
        return q, k, v


def _mixed(run: Run, inputs: Heads, differentiate: bool) -> tuple[Tensor, _Mixed | None]:
    q, k, v = (x.detach().requires_grad_(differentiate) for x in inputs)
    with torch.set_grad_enabled(differentiate):
        y = run(q, k, v, None)
    graph = _Mixed((q, k, v), get_gradient_edge(y)) if differentiate else None
    # ``data`` has no version counter: rows that are overwritten get no gradient in this graph.
    return y.data, graph


class _ByEdges(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        run: Run,
        composite: Callable[..., Tensor],
        ends: list[_End],
        layout: Layout,
        differentiate: bool,
    ) -> Tensor:
        differentiate = differentiate and any(ctx.needs_input_grad)
        sent = [torch.stack((k[:, :, end.sent], v[:, :, end.sent])) for end in ends]
        halos = _exchanged(ends, sent, [end.halo for end in ends], layout)
        y, whole = _mixed(run, (q, k, v), differentiate)
        short: list[_Mixed | None] = []
        for end, (keys, values) in zip(ends, halos, strict=True):
            if not end.halo:
                short.append(None)
                continue
            inputs = end.padded(q), end.joined(k, keys), end.joined(v, values)
            rows, graph = _mixed(run, inputs, differentiate)
            y[:, :, end.rows] = rows[:, :, end.inner]
            short.append(graph)
        ctx.whole, ctx.short, ctx.ends, ctx.layout = whole, short, ends, layout
        ctx.composite = composite
        if differentiate:
            ctx.save_for_backward(q, k, v)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = _differentiable(ctx, grad) if torch.is_grad_enabled() else _gradients(ctx, grad)
        wanted = [x if w else None for x, w in zip(found, ctx.needs_input_grad, strict=False)]
        return *wanted, None, None, None, None, None


def _differentiable(ctx: Any, grad: Tensor) -> Heads:
    inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in ctx.saved_tensors]
    y = ctx.composite(*inputs)
    q, k, v = torch.autograd.grad(y, inputs, grad, create_graph=True)
    return q, k, v


def _gradients(ctx: Any, grad: Tensor) -> Heads:
    ends: list[_End] = ctx.ends
    alone = grad.clone()
    for end in ends:
        alone[:, :, end.rows] = 0
    q, k, v = ctx.whole.gradients(alone)
    beyond = []
    for end, graph in zip(ends, ctx.short, strict=True):
        if graph is None:
            beyond.append(k.new_empty(2, *k.shape[:2], 0, k.shape[3]))
            continue
        rows = grad.new_zeros(graph.inputs[0].shape)
        rows[:, :, end.inner] = grad[:, :, end.rows]
        near = graph.gradients(rows)
        inside = slice(end.halo, None) if end.before else slice(0, end.own.stop - end.own.start)
        for whole, part in zip((q, k, v), near, strict=True):
            whole[:, :, end.own] += part[:, :, inside]
        beyond.append(torch.stack([part[:, :, end.beyond] for part in near[1:]]))
    counts = [end.sent.stop - end.sent.start for end in ends]
    for end, (keys, values) in zip(ends, _exchanged(ends, beyond, counts, ctx.layout), strict=True):
        k[:, :, end.sent] += keys
        v[:, :, end.sent] += values
    return q, k, v

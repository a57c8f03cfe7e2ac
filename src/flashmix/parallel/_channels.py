"""Tokens for channels: each rank filters whole columns of its share of the channels.

The channels go in pieces, so that what the filter holds for itself is that of a piece.

Shapes: B batch, n own tokens, N all tokens, D channels, c own channels of a piece, M modes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from flashmix.parallel._layout import Layout
from flashmix.parallel._once import once
from flashmix.parallel._pieces import Piece, cut, sizes, through
from flashmix.parallel._ranks import even_split

FEWEST_CHANNELS = 16
"""Of a piece: filters of fewer channels at a time are slow."""

Run = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def by_channels(
    run: Run, x: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout, whole: bool
) -> Tensor:
    """``run(x, weight, bias)`` over all tokens, each rank for its share of the channels.

    Args:
        run: takes [B, N, c], weight [M, c, 2] and bias [c] or None; returns [B, N, c].
        x: own tokens, [B, n, D]; so is the result.
        weight: [M, D, 2].
        bias: [D], or None.
        layout: of the tokens.
        whole: every rank gets the whole gradients of ``weight`` and ``bias``, else those of its
            share of the channels.
    """
    differentiate = torch.is_grad_enabled()
    origin = x[:0].clone()  # holds nothing of x, and says where gradients come from
    return _ByChannels.apply(x, weight, bias, run, layout, whole, differentiate, origin)


@dataclass(frozen=True)
class _Filtered:
    """The graph of one piece: what went in, and where gradients of what came out enter."""

    channels: slice
    inputs: tuple[Tensor, ...]
    edge: GradientEdge


class _ByChannels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        run: Run,
        layout: Layout,
        whole: bool,
        differentiate: bool,
        origin: Tensor,
    ) -> Tensor:
        pieces, y = _pieces(x, layout), torch.empty_like(x, memory_format=torch.contiguous_format)
        rank, batch = layout.ranks.rank, x.shape[0]
        ctx.layout, ctx.whole = layout, whole
        ctx.save_for_backward(weight, bias, origin)
        ctx.done = {}
        wanted = ctx.needs_input_grad[:3] if differentiate else (False,) * 3

        def work(k: int, flat: Tensor) -> Tensor:
            channels = pieces[k][rank]
            if not flat.numel():
                return flat
            given = [_whole(flat, layout, batch), weight[:, channels]]
            given += [] if bias is None else [bias[channels]]
            leaves = [t.detach().requires_grad_(w) for t, w in zip(given, wanted, strict=False)]
            with torch.set_grad_enabled(any(wanted)):
                filtered = run(leaves[0], leaves[1], None if bias is None else leaves[2])
            if filtered.requires_grad:  # not where all is padding and only the filter is wanted
                edge = get_gradient_edge(filtered)
                ctx.done[k] = _Filtered(channels, tuple(leaves), edge)
            return _token_first(filtered.detach())

        _go_through(x, y, pieces, layout, work)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint computes them anew for one reader
        found = once("a filter", lambda: _gradients(ctx, grad, *saved[:2]), grad, *saved)
        return *found, None, None, None, None, None


def _gradients(
    ctx: Any, grad: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    layout: Layout = ctx.layout
    pieces, batch = _pieces(grad, layout), grad.shape[0]
    grad_x = torch.empty_like(grad, memory_format=torch.contiguous_format)
    together, sums = _side_by_side((weight, bias))

    def work(k: int, flat: Tensor) -> Tensor:
        if not flat.numel():
            return flat
        one: _Filtered | None = ctx.done.get(k)
        if one is None:
            return torch.zeros_like(flat)
        asked = [leaf for leaf in one.inputs if leaf.requires_grad]
        # The graph is kept: this backward may be asked for again.
        found = torch.autograd.grad(
            [one.edge],
            asked,
            [_whole(flat, layout, batch)],
            retain_graph=True,
            materialize_grads=True,
        )
        grads = dict(zip(map(id, asked), found, strict=True))
        for total, leaf, place in zip(
            sums, one.inputs[1:], ((slice(None), one.channels), (one.channels,)), strict=False
        ):
            if total is not None:
                total[place] = grads[id(leaf)]
        columns = grads.get(id(one.inputs[0]))
        return torch.zeros_like(flat) if columns is None else _token_first(columns)

    _go_through(grad, grad_x, pieces, layout, work)
    if ctx.whole and together is not None:
        layout.ranks.add_up(together)
    return grad_x if ctx.needs_input_grad[0] else None, *sums


def _side_by_side(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, list[Tensor | None]]:
    """Zeros like those that need a gradient, and the one tensor that they lie in."""
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    if not wanted:
        return None, [None] * len(tensors)
    together = wanted[0].new_zeros(sum(t.numel() for t in wanted))
    parts = iter(together.split([t.numel() for t in wanted]))
    return together, [
        next(parts).view(t.shape) if t is not None and t.requires_grad else None for t in tensors
    ]


def _pieces(x: Tensor, layout: Layout) -> list[Piece]:
    shares = even_split(x.shape[2], layout.ranks.size)
    column = x.shape[0] * layout.total * x.element_size()
    return cut(shares, column, x.device.type, FEWEST_CHANNELS)


def _go_through(
    x: Tensor,
    y: Tensor,
    pieces: list[Piece],
    layout: Layout,
    work: Callable[[int, Tensor], Tensor],
) -> None:
    """Every piece of ``x`` [B, n, D] to its rank and through ``work``, into ``y``."""
    batch, count, _ = x.shape

    def parts(flat: Tensor, piece: Piece) -> list[Tensor]:
        flats = flat.split([batch * count * size for size in sizes(piece)])
        return [f.view(count, batch, c) for f, c in zip(flats, sizes(piece), strict=True)]

    def send(k: int) -> Tensor:
        piece = pieces[k]
        flat = x.new_empty(batch * count * sum(sizes(piece)))
        for part, some in zip(parts(flat, piece), piece, strict=True):
            part.copy_(x[:, :, some].transpose(0, 1))
        return flat

    def receive(k: int, flat: Tensor) -> None:
        for part, some in zip(parts(flat, pieces[k]), pieces[k], strict=True):
            y[:, :, some] = part.transpose(0, 1)

    widths = [[batch * size for size in sizes(piece)] for piece in pieces]
    through(widths, layout, send, work, receive)


def _whole(flat: Tensor, layout: Layout, batch: int) -> Tensor:
    """All tokens of the own channels, [B, N, c]."""
    return flat.view(layout.total, batch, -1).transpose(0, 1).contiguous()


def _token_first(y: Tensor) -> Tensor:
    """[B, N, c] as it travels, [N, B, c] flat."""
    return y.transpose(0, 1).flatten()

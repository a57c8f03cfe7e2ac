"""Channel exchange: each rank filters whole sequences for its share of the channels.

The channels are exchanged in chunks, so that the filter's own workspace is that of one chunk.

Shapes: B batch, n own tokens, N all tokens, D channels, c own channels of a chunk, M modes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from flashmix.parallel.comm.chunks import (
    ColumnChunk,
    chunk_sizes,
    pipelined_all_to_all,
    split_columns,
)
from flashmix.parallel.comm.first_order import first_order
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.ranks import even_split
from flashmix.parallel.comm.volume import exchange_bytes

MIN_CHANNELS = 16
"""Least channels of a chunk: filtering fewer at a time is slow."""

Run = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def filter_by_channels(
    run: Run, x: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout, whole: bool
) -> Tensor:
    """The own tokens of ``run(x, weight, bias)``, each rank computing its share of the channels.

    Args:
        run: takes [B, N, c], weight [M, c, 2] and bias [c] or None; returns [B, N, c].
        x: own tokens, [B, n, D], as the result.
        weight: [M, D, 2].
        bias: [D], or None.
        layout: of the tokens.
        whole: give every rank the full gradients of ``weight`` and ``bias``; otherwise each gets
            those of its share of the channels, and zeros elsewhere.
    """
    differentiate = torch.is_grad_enabled()
    origin = x[:0].clone()  # links the saved graphs to x without keeping x in memory
    return _ByChannels.apply(x, weight, bias, run, layout, whole, differentiate, origin)


@dataclass(frozen=True)
class _Filtered:
    """The autograd graph of a chunk: its inputs, and where the output's gradient enters."""

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
        chunks, y = _chunks(x, layout), torch.empty_like(x, memory_format=torch.contiguous_format)
        rank, batch = layout.ranks.rank, x.shape[0]
        ctx.layout, ctx.whole = layout, whole
        ctx.save_for_backward(weight, bias, origin)
        ctx.done = {}
        wanted = ctx.needs_input_grad[:3] if differentiate else (False,) * 3

        def work(k: int, flat: Tensor) -> Tensor:
            channels = chunks[k][rank]
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

        _exchange(x, y, chunks, layout, work)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes them at each access
        found = first_order("a filter", lambda: _gradients(ctx, grad, *saved[:2]), grad, *saved)
        return *found, None, None, None, None, None


def _gradients(
    ctx: Any, grad: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    layout: Layout = ctx.layout
    chunks, batch = _chunks(grad, layout), grad.shape[0]
    grad_x = torch.empty_like(grad, memory_format=torch.contiguous_format)
    flat_gradients, sums = _zero_gradients((weight, bias))

    def work(k: int, flat: Tensor) -> Tensor:
        if not flat.numel():
            return flat
        filtered: _Filtered | None = ctx.done.get(k)
        if filtered is None:
            return torch.zeros_like(flat)
        wanted = [leaf for leaf in filtered.inputs if leaf.requires_grad]
        # The graph is kept for a second backward.
        found = torch.autograd.grad(
            [filtered.edge],
            wanted,
            [_whole(flat, layout, batch)],
            retain_graph=True,
            materialize_grads=True,
        )
        grads = dict(zip(map(id, wanted), found, strict=True))
        for total, leaf, place in zip(
            sums,
            filtered.inputs[1:],
            ((slice(None), filtered.channels), (filtered.channels,)),
            strict=False,
        ):
            if total is not None:
                total[place] = grads[id(leaf)]
        columns = grads.get(id(filtered.inputs[0]))
        return torch.zeros_like(flat) if columns is None else _token_first(columns)

    _exchange(grad, grad_x, chunks, layout, work)
    if ctx.whole and flat_gradients is not None:
        layout.ranks.all_reduce_(flat_gradients)
    return grad_x if ctx.needs_input_grad[0] else None, *sums


def _zero_gradients(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, list[Tensor | None]]:
    """Zeros for the gradients of those that require one, as views of a single tensor, and that."""
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    if not wanted:
        return None, [None] * len(tensors)
    flat_gradients = wanted[0].new_zeros(sum(t.numel() for t in wanted))
    parts = iter(flat_gradients.split([t.numel() for t in wanted]))
    return flat_gradients, [
        next(parts).view(t.shape) if t is not None and t.requires_grad else None for t in tensors
    ]


def _chunks(x: Tensor, layout: Layout) -> list[ColumnChunk]:
    shares = even_split(x.shape[2], layout.ranks.size)
    column = x.shape[0] * layout.total * x.element_size()
    return split_columns(shares, column, x.device.type, MIN_CHANNELS)


def _exchange(
    x: Tensor,
    y: Tensor,
    chunks: list[ColumnChunk],
    layout: Layout,
    work: Callable[[int, Tensor], Tensor],
) -> None:
    """Exchange every chunk of ``x`` [B, n, D], apply ``work``, and write the results to ``y``."""
    batch, count, _ = x.shape

    def parts(flat: Tensor, chunk: ColumnChunk) -> list[Tensor]:
        flats = flat.split([batch * count * size for size in chunk_sizes(chunk)])
        return [f.view(count, batch, c) for f, c in zip(flats, chunk_sizes(chunk), strict=True)]

    def send(k: int) -> Tensor:
        chunk = chunks[k]
        flat = x.new_empty(batch * count * sum(chunk_sizes(chunk)))
        for part, some in zip(parts(flat, chunk), chunk, strict=True):
            part.copy_(x[:, :, some].transpose(0, 1))
        return flat

    def receive(k: int, flat: Tensor) -> None:
        for part, some in zip(parts(flat, chunks[k]), chunks[k], strict=True):
            y[:, :, some] = part.transpose(0, 1)

    widths = [[batch * size for size in chunk_sizes(chunk)] for chunk in chunks]
    pipelined_all_to_all(widths, layout, send, work, receive)


def _whole(flat: Tensor, layout: Layout, batch: int) -> Tensor:
    """All tokens of the own channels: [N, B, c] flat to [B, N, c]."""
    return flat.view(layout.total, batch, -1).transpose(0, 1).contiguous()


def _token_first(y: Tensor) -> Tensor:
    """[B, N, c] as it is exchanged: [N, B, c] flat."""
    return y.transpose(0, 1).flatten()


def channel_exchange_bytes(layout: Layout, rank: int, dim: int, channel_bytes: int) -> int:
    """Bytes that ``rank`` sends in one pass of :func:`filter_by_channels`.

    ``channel_bytes`` is the size of one token's channel, of all sequences.
    """
    shares = [channel_bytes * share for share in even_split(dim, layout.ranks.size)]
    return sum(exchange_bytes(layout, rank, shares))

"""Collectives that gradients flow through.

The loss is the sum of what the ranks compute from their slices. So the adjoint of an exchange is
the exchange back, and that of a sum over ranks is the sum over ranks of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flashmix.parallel._ranks import Ranks

Axis = tuple[int, Sequence[int]]
"""A dimension and its size on, or for, each rank."""


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, split: Axis, join: Axis) -> Tensor:
        ctx.ranks, ctx.split, ctx.join = ranks, split, join
        (split_dim, split_sizes), (join_dim, join_sizes) = split, join
        shape = list(x.shape)
        shape[split_dim] = split_sizes[ranks.rank]
        shapes = [[*shape[:join_dim], size, *shape[join_dim + 1 :]] for size in join_sizes]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        parts = ranks.all_to_all(x.split(list(split_sizes), split_dim), sizes)
        return torch.cat([part.view(s) for part, s in zip(parts, shapes, strict=True)], join_dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return exchange(grad, ctx.ranks, ctx.join, ctx.split), None, None, None


def exchange(x: Tensor, ranks: Ranks, split: Axis, join: Axis) -> Tensor:
    """Give each rank its share of one dimension, and get the whole of another.

    Args:
        x: ``split``'s dimension whole, ``join``'s as this rank holds it.
        split: the dimension to give away, and the size that each rank gets.
        join: the dimension to complete, and the size that each rank holds.
    """
    return _Exchange.apply(x, ranks, split, join)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ranks: Ranks, adjoint: Callable[[Tensor, Ranks], Tensor]
    ) -> Tensor:
        ctx.ranks, ctx.adjoint = ranks, adjoint
        return ranks.all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.adjoint(grad, ctx.ranks), None, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return summed(grad, ctx.ranks), None


def all_sum(x: Tensor, ranks: Ranks) -> Tensor:
    """The sum of ``x`` over the ranks."""
    return _Sum.apply(x, ranks, all_sum)


def summed(x: Tensor, ranks: Ranks) -> Tensor:
    """As :func:`all_sum`, where what comes back is the whole gradient on every rank already."""
    return _Sum.apply(x, ranks, shared)


def shared(x: Tensor, ranks: Ranks) -> Tensor:
    """``x``, equal on all ranks, each of which uses it for its part: gradients are summed back.

    Between :func:`summed` and this every rank has the whole gradient, that of parameters included.
    """
    return _Shared.apply(x, ranks)


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, sizes: Sequence[int], *parts: Tensor) -> Tensor:
        ctx.ranks, ctx.shapes = ranks, [part.shape for part in parts]
        ctx.sizes = sizes
        return torch.cat(ranks.all_to_all(parts, sizes))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        sizes = [shape.numel() for shape in ctx.shapes]
        back = send(grad.split(list(ctx.sizes)), sizes, ctx.ranks)
        return None, None, *(g.view(s) for g, s in zip(back, ctx.shapes, strict=True))


def send(parts: Sequence[Tensor], sizes: Sequence[int], ranks: Ranks) -> Sequence[Tensor]:
    """:meth:`Ranks.all_to_all` with gradients: ``parts[r]`` goes to rank r."""
    return _Send.apply(ranks, sizes, *parts).split(list(sizes))

"""Collectives that autograd differentiates.

The loss is the sum of the losses that the ranks compute from their slices. So the adjoint of an
exchange is the exchange back, and that of a sum across ranks is the sum of the ranks' gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flashmix.parallel.comm.ranks import Ranks

Axis = tuple[int, Sequence[int]]
"""A dimension of a tensor, and how much of it each rank holds."""


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
    """Split one dimension of ``x`` among the ranks, and gather another from them.

    Args:
        x: all of ``split``'s dimension, and of ``join``'s what this rank holds.
        ranks: the ranks.
        split: the dimension to split, and the size that each rank gets.
        join: the dimension to gather, and the size that each rank holds.
    """
    return _Exchange.apply(x, ranks, split, join)


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ranks: Ranks, adjoint: Callable[[Tensor, Ranks], Tensor]
    ) -> Tensor:
        ctx.ranks, ctx.adjoint = ranks, adjoint
        return ranks.all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.adjoint(grad, ctx.ranks), None, None


class _ReduceBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return reduce_forward(grad, ctx.ranks), None


def all_sum(x: Tensor, ranks: Ranks) -> Tensor:
    """The sum of ``x`` across the ranks; the backward sums the gradients across them too."""
    return _Reduce.apply(x, ranks, all_sum)


def reduce_forward(x: Tensor, ranks: Ranks) -> Tensor:
    """The sum of ``x`` across the ranks; the backward passes the gradient on unchanged.

    For a result whose incoming gradient is summed across the ranks already.
    """
    return _Reduce.apply(x, ranks, reduce_backward)


def reduce_backward(x: Tensor, ranks: Ranks) -> Tensor:
    """``x``, which is equal on all ranks, unchanged; the backward sums its gradient across them.

    Between :func:`reduce_forward` and this, every rank computes the full gradients, those of
    parameters included.
    """
    return _ReduceBackward.apply(x, ranks)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, sizes: Sequence[int], *parts: Tensor) -> Tensor:
        ctx.ranks, ctx.shapes = ranks, [part.shape for part in parts]
        ctx.sizes = sizes
        return torch.cat(ranks.all_to_all(parts, sizes))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        sizes = [shape.numel() for shape in ctx.shapes]
        back = all_to_all(grad.split(list(ctx.sizes)), sizes, ctx.ranks)
        return None, None, *(g.view(s) for g, s in zip(back, ctx.shapes, strict=True))


def all_to_all(parts: Sequence[Tensor], sizes: Sequence[int], ranks: Ranks) -> Sequence[Tensor]:
    """:meth:`Ranks.all_to_all` with gradients: ``parts[r]`` goes to rank r."""
    return _AllToAll.apply(ranks, sizes, *parts).split(list(sizes))

"""Tensors [B, H, N, dh] as the kernels of the sparse attentions take them.

Shapes: B batch, H heads of queries, K heads of keys and values (a divisor of H), N tokens, dh
width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashmix.ops._triton.kernels import delta_kernel
from flashmix.ops._triton.launch import cdiv, padded
from flashmix.ops._triton.sequences import sequences

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Packing:
    """Positions of tokens, real ones first, int32 [B, N], and how many are real, int32 [B]."""

    order: Tensor | None
    lengths: Tensor | None

    @property
    def packed(self) -> bool:
        """Whether there is any padding to step over."""
        return self.order is not None


def packing(mask: Tensor | None) -> Packing:
    """How kernels find the real tokens: nothing is copied."""
    if mask is None:
        return Packing(None, None)
    where = sequences(mask, mask, None)
    return Packing(where.order, where.lengths)


def ensure_contiguous_last_dim(*xs: Tensor) -> tuple[Tensor, ...]:
    """``xs`` with the elements of a row next to each other, copied only where they are not."""
    return tuple(x if x.stride(3) == 1 else x.contiguous() for x in xs)


def empty_bnhd(x: Tensor) -> Tensor:
    """An empty tensor like ``x`` [B, H, N, dh] whose memory is [B, N, H, dh].

    The heads of a token then lie side by side, as projections give and take them: to put them
    there copies nothing. Kernels and their fakes make what they return with this.
    """
    batch, heads, n, width = x.shape
    return x.new_empty((batch, n, heads, width)).transpose(1, 2)


def strides(*xs: Tensor) -> tuple[int, ...]:
    """Those of batch, head and token of each tensor, one after the other."""
    return tuple(stride for x in xs for stride in x.stride()[:3])


def weight_sums(y: Tensor, grad: Tensor) -> Tensor:
    """Sum over dh of y * grad, float32 [B, H, N]: what a softmax's backward takes off."""
    batch, heads, n, width = y.shape
    y, grad = ensure_contiguous_last_dim(y, grad)
    delta = torch.empty(y.shape[:3], dtype=torch.float32, device=y.device)
    rows = 32
    delta_kernel[(batch * heads * cdiv(n, rows),)](
        y,
        grad,
        delta,
        *strides(y, grad),
        heads,
        n,
        D=width,
        DP=padded(width),
        ROWS=rows,
        num_warps=4,
    )
    return delta

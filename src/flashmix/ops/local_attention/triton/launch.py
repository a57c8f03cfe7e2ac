"""Launching the sliding-window kernels.

Shapes: B batch, H heads of queries, K heads of keys and values, N tokens, dh width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flashmix.ops._triton.heads import (
    LOG2_E,
    empty_bnhd,
    ensure_contiguous_last_dim,
    packing,
    strides,
    weight_sums,
)
from flashmix.ops._triton.launch import cdiv, padded, precision
from flashmix.ops._triton.tuning import LaunchConfig, launch_config
from flashmix.ops.local_attention.triton.kernels import backward_kernel, forward_kernel


@dataclass(frozen=True, kw_only=True)
class Config(LaunchConfig):
    """Sides of a tile, warps of a program and depth of its pipeline, for both directions."""

    op = "local_attention"
    sizes = ("head_dim", "window")

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2
    back_rows: int = 64
    back_step: int = 64
    back_warps: int = 4
    back_stages: int = 2

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """What holds more bytes takes smaller tiles to stay in shared memory."""
        row = padded(sizes["head_dim"]) * dtype.itemsize
        back = {"back_warps": 8, "back_stages": 1}
        if row > 512:
            return cls(queries=32, keys=16, stages=1, back_rows=16, back_step=16, **back)
        if row > 256:
            return cls(keys=32, warps=8, stages=1, back_rows=32, back_step=32, **back)
        if dtype == torch.float32:
            return cls(keys=32, back_rows=32, back_step=32)
        return cls(back_warps=8) if row > 128 else cls()

    @classmethod
    def tunable(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> bool:
        """Heads of up to 64."""
        return dtype != torch.float32 and padded(sizes["head_dim"]) * dtype.itemsize <= 128


@functools.cache
def config(width: int, window: int, dtype: torch.dtype) -> Config:
    """The launch parameters of heads of that width."""
    return launch_config(Config, {"head_dim": width, "window": window}, dtype)


def _side(side: int, seq_len: int) -> int:
    return min(side, padded(seq_len))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    before: int,
    after: int,
    how: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """The output, token-major, and the base-2 logarithm of each query's sum, float32 [B, H, N]."""
    batch, heads, n, width = q.shape
    q, k, v = ensure_contiguous_last_dim(q, k, v)
    y = empty_bnhd(q)
    logarithm = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    before, after = min(before, n), min(after, n)
    how = how or config(width, before + after, q.dtype)
    real = packing(mask)
    queries = _side(how.queries, n)
    if y.numel():
        forward_kernel[(cdiv(n, queries) * batch * heads,)](
            q,
            k,
            v,
            y,
            logarithm,
            real.order,
            real.lengths,
            *strides(q, k, v, y),
            width**-0.5 * LOG2_E,
            heads,
            heads // k.shape[1],
            n,
            before,
            after,
            D=width,
            DP=padded(width),
            QUERIES=queries,
            KEYS=_side(how.keys, n),
            PACKED=real.packed,
            PRECISION=precision(q.dtype),
            num_warps=how.warps,
            num_stages=how.stages,
        )
    return y, logarithm


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    logarithm: Tensor,
    mask: Tensor | None,
    before: int,
    after: int,
    how: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v, token-major."""
    batch, heads, n, width = q.shape
    q, k, v, grad = ensure_contiguous_last_dim(q, k, v, grad)
    logarithm = logarithm.contiguous()
    grads = empty_bnhd(q), empty_bnhd(k), empty_bnhd(v)
    before, after = min(before, n), min(after, n)
    how = how or config(width, before + after, q.dtype)
    real = packing(mask)
    rows = _side(how.back_rows, n)
    if y.numel():
        backward_kernel[(cdiv(n, rows) * batch * k.shape[1],)](
            q,
            k,
            v,
            grad,
            logarithm,
            weight_sums(y, grad),
            *grads,
            real.order,
            real.lengths,
            *strides(q, k, v, grad, *grads),
            width**-0.5,
            width**-0.5 * LOG2_E,
            heads,
            heads // k.shape[1],
            n,
            before,
            after,
            D=width,
            DP=padded(width),
            ROWS=rows,
            STEP=_side(how.back_step, n),
            PACKED=real.packed,
            PRECISION=precision(q.dtype),
            num_warps=how.back_warps,
            num_stages=how.back_stages,
        )
    return grads

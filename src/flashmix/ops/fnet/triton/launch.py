"""Launching the FNet kernels for one length.

Shapes: B batch, N tokens, D width; planes [2, B, H, R, D], real and imaginary parts.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from flashmix.ops._triton import tuning
from flashmix.ops._triton.launch import padded, precision
from flashmix.ops.fnet.plan import Matrices, Plan, matrices
from flashmix.ops.fnet.triton.kernels import head_kernel, long_tail_kernel, tail_kernel


@dataclass(frozen=True, kw_only=True)
class Config:
    """Columns of a tile and warps of a program.

    ``head_j`` counts the digits j1 that the head's second product takes at a time.
    """

    head_j: int = 16
    head_warps: int = 4
    tail_c: int = 64
    tail_warps: int = 4


@functools.cache
def config(plan: Plan, dtype: torch.dtype) -> Config:
    """Tuned for half types; float32 products need twice the room, so their tiles are small."""
    if dtype == torch.float32:
        return Config(head_warps=8, tail_c=16)
    tuned = tuning.nearest("fnet", {"seq_len": plan.seq_len, "dim": plan.dim})
    if tuned is None or tuned["n1"] != plan.n1:
        return Config(tail_c=64 if plan.nb == 1 else 16)
    return Config(**{name: value for name, value in tuned.items() if name != "n1"})


def mix(x: Tensor, plan: Plan, norm: str) -> Tensor:
    """Re(FFT2(x)) of ``x`` [B, N, D], B >= 1, whose shape ``plan`` is for."""
    batch, _, dim = x.shape
    m = matrices(plan, x.dtype, x.device)
    how = config(plan, x.dtype)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    planes = x.new_empty((2, batch, plan.half, plan.rows, dim))
    scale = (1 / math.sqrt(plan.seq_len * dim) if norm == "ortho" else 1.0) / m.gain
    head(x, planes, plan, m, how)
    (tail if plan.nb == 1 else long_tail)(planes, y, plan, m, scale, how)
    return y


def head(x: Tensor, planes: Tensor, plan: Plan, m: Matrices, how: Config) -> None:
    """Transform the rows n1 and the width of ``x`` into ``planes``."""
    head_kernel[(x.shape[0] * plan.rows,)](
        x,
        planes[0],
        planes[1],
        m.head.re,
        m.width_1.re,
        m.width_1.im,
        m.width_twiddle.re,
        m.width_twiddle.im,
        m.width_2.re,
        m.width_2.im,
        *x.stride(),
        plan.n2,
        N1=plan.n1,
        D1=plan.d1,
        D2=plan.d2,
        N1P=padded(plan.n1),
        HP=plan.half_padded,
        D1P=padded(plan.d1),
        D2P=padded(plan.d2),
        J=min(how.head_j, padded(plan.d1)),
        PRECISION=precision(x.dtype),
        num_warps=how.head_warps,
    )


def _tail_grids(
    batch: int, dim: int, c: int, plan: Plan
) -> list[tuple[bool, tuple[int, int, int]]]:
    """Whether the shared plane is meant, and the grid: one launch for it, one for the others."""
    columns: int = triton.cdiv(dim, c)
    grids = [(False, (columns, plan.half - 1, batch)), (True, (columns, 1, batch))]
    return grids if plan.half > 1 else grids[1:]


def tail(planes: Tensor, y: Tensor, plan: Plan, m: Matrices, scale: float, how: Config) -> None:
    """Sum the rows n2 of ``planes`` into ``y`` by one product."""
    batch, _, dim = y.shape
    c = min(how.tail_c, padded(dim))
    for shared, grid in _tail_grids(batch, dim, c, plan):
        tail_kernel[grid](
            planes[0],
            planes[1],
            y,
            m.tail_a.re,
            m.tail_a.im,
            m.tail_middle.re,
            m.tail_middle.im,
            scale,
            dim,
            N1=plan.n1,
            N2=plan.n2,
            N2P=padded(plan.n2),
            KP=padded(plan.sum_a),
            C=c,
            SHARED=shared,
            PRECISION=precision(y.dtype),
            num_warps=how.tail_warps,
        )


def long_tail(
    planes: Tensor, y: Tensor, plan: Plan, m: Matrices, scale: float, how: Config
) -> None:
    """Sum the rows n2 of ``planes`` into ``y`` by two products."""
    batch, _, dim = y.shape
    c = min(how.tail_c, padded(dim))
    for shared, grid in _tail_grids(batch, dim, c, plan):
        long_tail_kernel[grid](
            planes[0],
            planes[1],
            y,
            m.tail_a.re,
            m.tail_a.im,
            m.tail_twiddle.re,
            m.tail_twiddle.im,
            m.tail_b.re,
            m.tail_b.im,
            m.tail_middle.re,
            m.tail_middle.im,
            scale,
            dim,
            N1=plan.n1,
            NA=plan.na,
            NB=plan.nb,
            NAP=padded(plan.na),
            KP=padded(plan.sum_a),
            NBP=padded(plan.nb),
            C=c,
            SHARED=shared,
            PRECISION=precision(y.dtype),
            num_warps=how.tail_warps,
        )

"""Launching the FNet kernels for one length.

Shapes: B batch, N tokens, D width; planes [2, B, H, R, D], real and imaginary parts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flashmix.ops._triton.launch import padded, precision, signals
from flashmix.ops._triton.tuning import LaunchConfig, launch_config
from flashmix.ops.fnet.plan import Matrices, Plan, matrices
from flashmix.ops.fnet.triton.kernels_pass1 import head_kernel
from flashmix.ops.fnet.triton.kernels_pass2 import tail_kernel


@dataclass(frozen=True, kw_only=True)
class Config(LaunchConfig):
    """Tiles and warps of a program of each pass.

    ``head_j`` counts the digits j1 that the head's second product takes at a time; ``head_regs``
    caps the registers of a thread, so that more programs fit a multiprocessor, as ``tail_regs``
    does. The tail takes ``tail_c`` columns and up to ``tail_pairs`` pairs of rows, ``tail_terms``
    of their sums at a time.
    """

    op = "fnet"
    sizes = ("seq_len", "dim")

    head_j: int = 16
    head_warps: int = 4
    head_regs: int | None = None
    tail_c: int = 64
    tail_pairs: int = 128
    tail_terms: int = 32
    tail_stages: int = 3
    tail_warps: int = 8
    tail_regs: int | None = None

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """Float32 products need twice the room, so their tiles are small."""
        return cls(head_warps=8, tail_c=16, tail_stages=1) if dtype == torch.float32 else cls()


@functools.cache
def config(plan: Plan, dtype: torch.dtype) -> Config:
    """The launch parameters of a plan."""
    sizes = {"seq_len": plan.seq_len, "dim": plan.dim, "n1": plan.n1}
    return launch_config(Config, sizes, dtype)


def mix(x: Tensor, plan: Plan, norm: str, how: Config | None = None) -> Tensor:
    """Re(FFT2(x)) of ``x`` [B, N, D], B >= 1, whose shape ``plan`` is for; tiles as given."""
    batch = x.shape[0]
    m = matrices(plan, x.dtype, x.device)
    how = how or config(plan, x.dtype)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    planes = x.new_empty((2, batch, plan.half, plan.rows, plan.dim))
    head(x, planes, plan, m, how)
    scale = 1 / math.sqrt(plan.seq_len * plan.dim) if norm == "ortho" else 1.0
    tail(planes, y, plan, m, scale, how)
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
        PDL=signals(x.device),
        num_warps=how.head_warps,
        maxnreg=how.head_regs,
    )


def tail(planes: Tensor, y: Tensor, plan: Plan, m: Matrices, scale: float, how: Config) -> None:
    """Sum the rows n2 of ``planes`` into ``y``."""
    batch, _, dim = y.shape
    c, side = min(how.tail_c, padded(dim)), padded(plan.pairs)
    q, step = min(how.tail_pairs, side), min(how.tail_terms, side)
    columns = -(-dim // c)
    early = signals(y.device)
    tail_kernel[(columns * (side // q), plan.half + 1, batch)](
        planes[0],
        planes[1],
        y,
        m.pairs.re,
        m.pairs.im,
        m.pairs.gain,
        scale / (m.gain * m.pairs.gain),
        columns,
        D=dim,
        N1=plan.n1,
        N2=plan.n2,
        KP=side,
        Q=q,
        STEP=step,
        C=c,
        PRECISION=precision(y.dtype),
        num_warps=how.tail_warps,
        maxnreg=how.tail_regs,
        num_stages=how.tail_stages if step < side else 1,
        PDL=early,
        launch_pdl=early,
    )

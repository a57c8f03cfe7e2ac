"""FNet mixing column by column: width first, then half of the columns along tokens.

Three passes over memory, two copies in bytes, and a fourth where N takes three digits. The
workspace is about one x: g, half of it, and its planes. Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flashmix.ops._triton.columns import launch
from flashmix.ops._triton.columns.plan import Digits
from flashmix.ops._triton.columns.plan import matrices as column_matrices
from flashmix.ops._triton.launch import padded, precision
from flashmix.ops._triton.matrices import Matrix, dft, phases, place
from flashmix.ops._triton.tuning import LaunchConfig, launch_config
from flashmix.ops.fnet.plan import split_width
from flashmix.ops.fnet.triton.kernels_columns import mirror_kernel, width_kernel


@dataclass(frozen=True, kw_only=True)
class Config(LaunchConfig):
    """Rows of a program of the first pass and its warps; columns and warps of the last."""

    op, section, sizes = "fnet_columns", "width", ("seq_len", "dim")

    width_rows: int = 4
    width_warps: int = 4
    mirror_c: int = 32
    mirror_warps: int = 4

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """Float32 needs twice the room."""
        wide = 2 if dtype == torch.float32 else 1
        d1, d2 = split_width(sizes["dim"]) or (1, 1)
        row = padded(d1) * padded(d2) * wide
        return cls(
            width_rows=max(1, min(16, 4096 // row)),
            mirror_c=32 // wide,
            mirror_warps=4 if padded(sizes["nb"]) <= 64 else 8,
        )


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig(launch.Config):
    """Those of the passes along tokens."""

    op, section, sizes = "fnet_columns", "columns", ("seq_len", "dim")


@functools.cache
def config(cut: Digits, dim: int, dtype: torch.dtype) -> Config:
    """The launch parameters of a cut."""
    sizes = {"seq_len": cut.seq_len, "dim": dim, "n1": cut.n1, "na": cut.na, "nb": cut.nb}
    return launch_config(Config, sizes, dtype)


@functools.cache
def tuned(
    seq_len: int, dim: int, dtype: torch.dtype
) -> tuple[Digits | None, Config | None, launch.Config | None]:
    """The digits of a length, and launch parameters; None where it has none."""
    cut = launch.tuned_digits(Config.op, seq_len, dim, dtype)
    if cut is None:
        return None, None, None
    columns = launch.tuned_config(ColumnsConfig, cut, dim, dtype)
    return cut, config(cut, dim, dtype), columns


@dataclass(frozen=True)
class WidthMatrices:
    """The matrices of the first pass on one device."""

    cas: Matrix
    twiddle: Matrix
    second: Matrix


@functools.cache
def width_matrices(dim: int, dtype: torch.dtype, device: torch.device) -> WidthMatrices:
    """Exact on the host and rounded to ``dtype``."""
    d1, d2 = split_width(dim) or (1, dim)
    d1p, d2p = padded(d1), padded(d2)
    w = dft(d1)
    turns = torch.arange(d2)[:, None] * torch.arange(d1)
    cas = torch.complex(w.real - w.imag, w.real + w.imag)
    return WidthMatrices(
        cas=place(cas, dtype, device, terms=2 * d1, shape=(d1p, d1p)),
        twiddle=place(phases(turns, dim), torch.float32, device, shape=(d2p, d1p)),
        second=place(dft(d2), dtype, device, terms=d2, shape=(d2p, d2p)),
    )


def hartley(x: Tensor, how: Config, dtype: torch.dtype) -> tuple[Tensor, float]:
    """G of ``x`` [B, N, D] in ``dtype``, and its gain.

    Its columns 0 to D // 2 are meant; others pad them to a multiple of 16, which keeps the masks of
    later passes from splitting their vectors, and may hold anything.
    """
    batch, seq_len, dim = x.shape
    d1, d2 = split_width(dim) or (1, dim)
    m = width_matrices(dim, x.dtype, x.device)
    row = -(-(dim // 2 + 1) // 16) * 16
    g = x.new_empty((batch, seq_len, row), dtype=dtype)
    blocks = -(-(seq_len // 2 + 1) // how.width_rows)
    width_kernel[(blocks * batch,)](
        x,
        g,
        m.cas.re,
        m.cas.im,
        m.twiddle.re,
        m.twiddle.im,
        m.second.re,
        m.second.im,
        *x.stride(),
        seq_len,
        blocks,
        W=row,
        D1=d1,
        D2=d2,
        D1P=padded(d1),
        D2P=padded(d2),
        ROWS=how.width_rows,
        PRECISION=precision(x.dtype),
        num_warps=how.width_warps,
    )
    return g, 2 * m.cas.gain * m.second.gain


def mix(
    x: Tensor,
    cut: Digits,
    norm: str,
    how: Config | None = None,
    columns: launch.Config | None = None,
) -> Tensor:
    """Re(FFT2(x)) of ``x`` [B, N, D], B >= 1, whose length ``cut`` is for; tiles as given."""
    batch, seq_len, dim = x.shape
    how = how or config(cut, dim, x.dtype)
    columns = columns or launch.config(cut, x.dtype)
    m = column_matrices(cut, x.dtype, x.device)
    g, gain = hartley(x, how, x.dtype)
    planes = launch.to_lines(g, cut, m, columns, seq_len)
    scale = 1 / (gain * m.forward_gain)
    if norm == "ortho":
        scale /= math.sqrt(seq_len * dim)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    c, tiles = launch.tile(how.mirror_c, g.shape[2])
    mirror_kernel[(tiles * cut.lines * batch,)](
        planes,
        y,
        m.digit_b.re,
        m.digit_b.im,
        planes.stride(0),
        scale,
        seq_len,
        planes.shape[-1],
        tiles,
        D=dim,
        N1=cut.n1,
        NA=cut.na,
        NB=cut.nb,
        NBP=padded(cut.nb),
        C=c,
        PRECISION=precision(x.dtype),
        num_warps=how.mirror_warps,
    )
    return y

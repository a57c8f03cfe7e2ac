"""FNet mixing of sequences of any lengths in three launches.

E and O are the even and the odd part of a sequence along its L tokens, of rows n <= L / 2. Then
Re(FFT2(x)) is real products only: P = cos_L E cos_D and Q = sin_L O sin_D give the rows
Y[k] = P[k] - Q[k] and Y[-k] = P[k] + Q[k] of k <= L / 2. The matrices of the width come from the
host; those of the tokens are made in the kernel, so a length needs no plan and no table.

L^2 D + 2 L D^2 operations a sequence, and three copies of the tokens in bytes.
Shapes: S sequences, N tokens of the longest, T packed tokens, D width; folded [2, R, W] holds E and
O, R the folded rows of all sequences, W the width to whole vectors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._triton.folded import fold, row
from flashmix.ops._triton.launch import cdiv, padded, precision
from flashmix.ops._triton.matrices import Matrix, dft, place
from flashmix.ops._triton.sequences import Sequences, sequences
from flashmix.ops._triton.tuning import LaunchConfig, launch_config
from flashmix.ops.fnet.registration import packed_formula, register
from flashmix.ops.fnet.triton.kernels_ragged import token_kernel, width_kernel


@dataclass(frozen=True, kw_only=True)
class Config(LaunchConfig):
    """Tiles and warps of a program of each launch.

    They depend on width and dtype alone: a sequence has the same bits whatever the batch around it.
    Of the width's product, and of the tokens', ``rows`` and ``columns`` are a tile of the result,
    and ``step`` terms are summed at a time.
    """

    width_rows: int = 128
    width_columns: int = 128
    width_step: int = 64
    width_warps: int = 8
    width_stages: int = 3
    token_rows: int = 64
    token_columns: int = 128
    token_step: int = 32
    token_warps: int = 4
    token_stages: int = 4

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """Float32 products need twice the room and three times the work."""
        dim, side = sizes["dim"], padded(sizes["dim"])
        if dtype == torch.float32:
            return cls(
                width_rows=64,
                width_columns=min(64, side),
                width_step=min(32, side),
                width_stages=2,
                token_columns=min(64, side),
                token_warps=8,
                token_stages=2,
            )
        # Of narrow tokens there are few tiles: smaller ones occupy more multiprocessors.
        columns = min(128 if dim > 256 else 64, side)
        return cls(
            width_columns=columns,
            width_step=min(64, side),
            width_warps=8 if dim > 256 else 4,
            width_stages=3 if dim > 256 else 4,
            token_columns=columns,
        )


@functools.cache
def config(dim: int, dtype: torch.dtype) -> Config:
    """The launch parameters of that width."""
    return launch_config(Config, {"dim": dim}, dtype)


@functools.cache
def width_matrix(dim: int, dtype: torch.dtype, device: torch.device) -> Matrix:
    """Cosines and minus sines of the DFT over D, [D, W]."""
    return place(dft(dim), dtype, device, terms=dim, shape=(dim, row(dim)))


def mix(x: Tensor, where: Sequences, norm: str, how: Config | None = None) -> Tensor:
    """Re(FFT2(x)) of each sequence of ``x`` over its own length; zeros at padding.

    Args:
        x: [S, N, D], or packed [T, D].
        where: its sequences.
        norm: "backward" or "ortho".
        how: tiles.

    Returns:
        As ``x``, contiguous.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    how = how or config(x.shape[-1], x.dtype)
    folded = fold(x, where)
    transform_tokens(transform_width(folded, x, where, how), y, where, norm, how)
    return y


def transform_width(folded: Tensor, x: Tensor, where: Sequences, how: Config) -> Tensor:
    """E cos_D and -O sin_D, times the gain of their matrix, [2, R, W]."""
    dim = x.shape[-1]
    m = width_matrix(dim, x.dtype, x.device)
    z = torch.empty_like(folded)
    tiles = cdiv(folded.shape[1], how.width_rows) * cdiv(row(dim), how.width_columns)
    width_kernel[(2 * tiles,)](
        folded,
        z,
        m.re,
        m.im,
        where.offsets,
        where.count,
        folded.shape[1],
        D=dim,
        W=row(dim),
        ROWS=how.width_rows,
        COLUMNS=how.width_columns,
        STEP=how.width_step,
        GROUP=8,
        PRECISION=precision(x.dtype),
        num_warps=how.width_warps,
        num_stages=how.width_stages,
    )
    return z


def transform_tokens(folded: Tensor, y: Tensor, where: Sequences, norm: str, how: Config) -> None:
    """Transform ``folded`` along the tokens of each sequence, into ``y``."""
    dim = y.shape[-1]
    gain = width_matrix(dim, y.dtype, y.device).gain
    token_kernel[(where.programs(2 * how.token_rows) * cdiv(dim, how.token_columns),)](
        folded,
        y,
        where.order,
        where.lengths,
        where.offsets,
        where.count,
        where.longest,
        *((0, *y.stride()[:1]) if where.packed else y.stride()[:2]),
        folded.shape[1],
        2 / gain / (math.sqrt(dim) if norm == "ortho" else 1.0),
        D=dim,
        W=row(dim),
        ROWS=how.token_rows,
        COLUMNS=how.token_columns,
        STEP=how.token_step,
        ORTHO=norm == "ortho",
        EXACT=y.dtype == torch.float32,
        PRECISION=precision(y.dtype),
        num_warps=how.token_warps,
        num_stages=how.token_stages,
    )


@kernel_op("fnet_triton_ragged")
def fnet(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Re(FFT2(x)) of each sequence over its own true length, [B, N, D]."""
    return mix(x, sequences(x, mask, None), norm)


@kernel_op("fnet_triton_packed", sums=True)
def packed(x: Tensor, cu_seqlens: Tensor, norm: str) -> Tensor:
    """The same of packed sequences, [T, D]."""
    return mix(x, sequences(x, None, cu_seqlens), norm)


register(fnet)
register(packed, packed_formula)

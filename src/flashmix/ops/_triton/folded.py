"""The even and the odd part of each sequence, which products with cosines and sines take.

A launch of its own: loads in front of a product are fetched ahead only where nothing but the
product stands behind them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._triton.kernels_folded import fold_kernel
from flashmix.ops._triton.launch import cdiv, padded
from flashmix.ops._triton.sequences import Sequences

_ROWS, _MOST_COLUMNS, _WARPS = 8, 256, 4


def row(dim: int) -> int:
    """Elements from a folded row to the next: whole vectors of 16."""
    return cdiv(dim, 16) * 16


def fold(x: Tensor, where: Sequences) -> Tensor:
    """Half of E[n] = x[n] + x[-n] and of O[n] = x[n] - x[-n] of n <= L / 2, [2, R, W].

    Args:
        x: [S, N, D], or packed [T, D].
        where: its sequences.

    Returns:
        R rows, L // 2 + 1 of each sequence, of W elements, D to whole vectors; in x's dtype.
    """
    dim = x.shape[-1]
    width = row(dim)
    folded = torch.empty((2, where.folded_rows(), width), dtype=x.dtype, device=x.device)
    columns = min(_MOST_COLUMNS, padded(dim))
    fold_kernel[(where.programs(2 * _ROWS) * cdiv(width, columns),)](
        x,
        folded,
        where.order,
        where.lengths,
        where.offsets,
        where.count,
        where.longest,
        *((0, *x.stride()) if where.packed else x.stride()),
        folded.shape[1],
        D=dim,
        W=width,
        ROWS=_ROWS,
        COLUMNS=columns,
        num_warps=_WARPS,
    )
    return folded

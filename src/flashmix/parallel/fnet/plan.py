"""Which calls of FNet mixing across ranks the Triton kernels support, and the bytes they send."""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._triton import availability
from flashmix.ops._triton.columns.plan import digits, size_unsupported_reason
from flashmix.ops._triton.launch import MOST_OFFSET
from flashmix.parallel.comm.chunks import split_in_multiples
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.ranks import even_split
from flashmix.parallel.comm.volume import exchange_bytes
from flashmix.parallel.fnet.fft import exchange_dtype

MOST_WIDTH = 4_096
"""Wider tokens use PyTorch's FFT: the dense matrix of the width would be too large."""
UNIT = 16
"""Parts of the column pairs are a multiple of it, so that kernels load and store whole vectors."""


def kernels_support(x: Tensor, layout: Layout) -> bool:
    """Whether the Triton kernels support such tokens; the answer is the same on every rank."""
    batch, _, dim = x.shape
    # Most elements of a sequence that a rank sends or receives.
    most = max(max(layout.counts) * (dim + 16), layout.total * (dim // layout.ranks.size + 64))
    return (
        x.is_cuda
        and x.dtype in availability.DTYPES
        and availability.missing() is None
        and layout.mask is None
        and dim <= MOST_WIDTH
        and digits(layout.total) is not None
        and size_unsupported_reason(layout.total, dim) is None
        and batch * most < MOST_OFFSET
    )


def fft_bytes(batch: int, dim: int, dtype: torch.dtype, layout: Layout, rank: int) -> int:
    """Bytes that ``rank`` sends in one pass by PyTorch's FFT: complex columns there and back."""
    token = 2 * batch * exchange_dtype(dtype).itemsize
    shares = [token * share for share in even_split(dim // 2 + 1, layout.ranks.size)]
    return sum(exchange_bytes(layout, rank, shares))


def kernel_bytes(
    batch: int, dim: int, dtype: torch.dtype, layout: Layout, rank: int, *, shared: bool
) -> int:
    """Bytes that ``rank`` sends in one pass by the kernels: two numbers a pair, there and back.

    Column D / 2 makes the rows of the first rank longer by ``UNIT``; with ``shared`` memory only on
    the way back.
    """
    token = batch * dtype.itemsize
    pairs = split_in_multiples((dim + 1) // 2, layout.ranks.size, UNIT)
    longer = [UNIT if other == 0 and dim % 2 == 0 else 0 for other in range(layout.ranks.size)]
    back = [token * (2 * pair + more) for pair, more in zip(pairs, longer, strict=True)]
    there = [2 * token * pair for pair in pairs] if shared else back
    return exchange_bytes(layout, rank, there)[0] + exchange_bytes(layout, rank, back)[1]

"""FNet mixing across ranks: the width's transform stays local, the tokens' runs on whole columns.

Only the columns j <= D // 2 of the spectrum travel, as complex numbers, a piece of them at a time;
what comes back are the real parts and their mirror images, which are the other columns. The
backward is the forward.

Both lie in one tensor [B, n, D]: the real part of column j at j and its imaginary part at D - j,
where its mirror image will stand. Columns 0 and D / 2 are real, and their own mirror images.

That is PyTorch's road; what Triton's kernels take goes by ``_fnet_triton``.

Shapes: B batch, n own tokens, N all tokens, D width, J = D // 2 + 1 columns, c of a piece.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops._padding import each_length, zero_padding
from flashmix.ops._precision import transform_dtype
from flashmix.ops._triton import availability
from flashmix.ops._triton.columns.plan import digits, unfit
from flashmix.ops._triton.launch import MOST_OFFSET
from flashmix.parallel.comm.chunks import (
    ColumnChunk,
    chunk_sizes,
    pipelined_all_to_all,
    split_columns,
)
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.ranks import even_split
from flashmix.parallel.comm.shared_memory import shared_memory

WIDTH_CHUNK = {"cpu": 512, "cuda": 16_384}
"""Fewest tokens whose width is transformed at a time: on a GPU each step costs launches."""
MAX_WIDTH_CHUNKS = {"cpu": 64, "cuda": 2}
"""Most steps of it: more hold less memory."""
MOST_WIDTH = 4_096
"""Wider tokens go through PyTorch's FFT on GPUs too: a dense matrix of the width would be large."""
UNIT = 16
"""Of pairs of columns: kernels read and write parts of so many, or multiples, in whole vectors."""
MIN_COLUMNS = 3
"""Of a piece: fewer lie too far apart in memory to be gathered fast."""


class _FNet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, norm: str) -> Tensor:
        ctx.layout, ctx.norm = layout, norm
        return _mix(x, layout, norm)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return fnet(grad, ctx.layout, ctx.norm), None, None


def fnet(x: Tensor, layout: Layout, norm: str) -> Tensor:
    """Re(FFT2) of all tokens; ``x`` and the result [B, n, D]."""
    return _FNet.apply(x, layout, norm)


def exchange_dtype(dtype: torch.dtype) -> torch.dtype:
    """What columns travel in: bfloat16 as it is; float16, whose range is short, as float32."""
    return dtype if dtype == torch.bfloat16 else transform_dtype(dtype)


def _mix(x: Tensor, layout: Layout, norm: str) -> Tensor:
    if not len(x):
        return torch.empty_like(x)  # of no sequence; every rank finds the same
    if kernels_support(x, layout):
        return _by_kernels(x, layout, norm)
    batch, _, dim = x.shape
    shares = even_split(dim // 2 + 1, layout.ranks.size)
    column = 2 * batch * layout.total * exchange_dtype(x.dtype).itemsize
    pieces = split_columns(shares, column, x.device.type, MIN_COLUMNS)
    y = _over_width(x, layout, norm)
    pipelined_all_to_all(
        [[2 * batch * size for size in chunk_sizes(piece)] for piece in pieces],
        layout,
        lambda k: _columns(y, pieces[k]),
        lambda _, flat: _over_tokens(flat, batch, layout, norm),
        lambda k, flat: _put_back(y, pieces[k], flat),
    )
    return y.to(x.dtype)


def _by_kernels(x: Tensor, layout: Layout, norm: str) -> Tensor:
    from flashmix.parallel.fnet.columns import columns_of

    memory = shared_memory(layout.ranks)
    columns = columns_of(
        *(x.shape[0], x.shape[2], x.dtype, x.device),
        *(layout.counts, layout.ranks.rank, norm),
        None if memory is None else 1,
    )
    if memory is not None:
        with layout.ranks.translate_errors():
            return columns.mix_in_shared_memory(x, memory)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    pipelined_all_to_all(
        columns.widths,
        layout,
        lambda k: columns.send(k, x),
        columns.work,
        lambda k, flat: columns.receive(k, flat, y),
    )
    return y


def kernels_support(x: Tensor, layout: Layout) -> bool:
    """Whether Triton's kernels take such tokens; every rank finds the same."""
    batch, _, dim = x.shape
    # Elements of each sequence that a rank sends, and is sent, at most.
    most = max(max(layout.counts) * (dim + 16), layout.total * (dim // layout.ranks.size + 64))
    return (
        x.is_cuda
        and x.dtype in availability.DTYPES
        and availability.missing() is None
        and layout.mask is None
        and dim <= MOST_WIDTH
        and digits(layout.total) is not None
        and unfit(layout.total, dim) is None
        and batch * most < MOST_OFFSET
    )


def _over_width(x: Tensor, layout: Layout, norm: str) -> Tensor:
    """Half of each token's spectrum, [B, n, D] as laid out above."""
    dim, mask = x.shape[2], layout.own_mask
    y = torch.empty(x.shape, dtype=exchange_dtype(x.dtype), device=x.device)
    place = x.device.type
    chunk = max(WIDTH_CHUNK[place], x.shape[1] // MAX_WIDTH_CHUNKS[place])
    for start in range(0, x.shape[1], chunk):
        some = slice(start, start + chunk)
        wide = zero_padding(x[:, some], None if mask is None else mask[:, some])
        half = torch.fft.rfft(wide.to(transform_dtype(x.dtype)), dim=2, norm=norm)
        y[:, some, : half.shape[2]] = half.real
        y[:, some, half.shape[2] :] = half.imag[:, :, 1 : (dim + 1) // 2].flip(2)
    return y


def _paired(some: slice, dim: int) -> slice:
    """Those of the columns that have an imaginary part, and a mirror image."""
    first = max(some.start, 1)
    return slice(first, max(first, min(some.stop, (dim + 1) // 2)))


def _columns(y: Tensor, piece: ColumnChunk) -> Tensor:
    """The piece's columns, for each rank [n, B, c, 2], end to end."""
    batch, count, dim = y.shape
    sizes = [2 * batch * count * (some.stop - some.start) for some in piece]
    flat = y.new_empty(sum(sizes))
    for part, some in zip(flat.split(sizes), piece, strict=True):
        real, imaginary = part.view(count, batch, some.stop - some.start, 2).unbind(-1)
        both = _paired(some, dim)
        real.copy_(y[:, :, some].transpose(0, 1))
        imaginary[:, :, : both.start - some.start] = 0
        imaginary[:, :, both.stop - some.start :] = 0
        imaginary[:, :, both.start - some.start : both.stop - some.start] = (
            y[:, :, dim - both.stop + 1 : dim - both.start + 1].flip(2).transpose(0, 1)
        )
    return flat


def _put_back(y: Tensor, piece: ColumnChunk, flat: Tensor) -> None:
    """Real parts and mirror images, as :func:`_columns` laid out, into their places."""
    batch, count, dim = y.shape
    sizes = [2 * batch * count * (some.stop - some.start) for some in piece]
    for part, some in zip(flat.split(sizes), piece, strict=True):
        plain, mirrored = part.view(count, batch, some.stop - some.start, 2).unbind(-1)
        both = _paired(some, dim)
        y[:, :, some] = plain.transpose(0, 1)
        mirrored = mirrored[:, :, both.start - some.start : both.stop - some.start]
        y[:, :, dim - both.stop + 1 : dim - both.start + 1] = mirrored.flip(2).transpose(0, 1)


def _over_tokens(flat: Tensor, batch: int, layout: Layout, norm: str) -> Tensor:
    """Real parts of the transform of columns [N, B, c, 2], beside their mirror images; in place."""
    if not flat.numel():
        return flat

    def transform(columns: Tensor) -> Tensor:
        y = torch.fft.fft(columns, dim=1, norm=norm)
        if layout.mask is not None:  # y[-k], the mirror image; only the real parts matter
            y.imag[:, :1], y.imag[:, 1:] = y.real[:, :1], y.real[:, 1:].flip(1)
        return y

    columns = flat.view(layout.total, batch, -1, 2)
    wide = torch.view_as_complex(columns.to(transform_dtype(flat.dtype))).transpose(0, 1)
    if layout.mask is not None:
        mixed = torch.view_as_real(each_length(transform, layout.mask, wide))
        return columns.copy_(mixed.transpose(0, 1)).flatten()
    real = transform(wide).real.transpose(0, 1)
    columns[..., 0] = real
    columns[:1, ..., 1], columns[1:, ..., 1] = real[:1], real[1:].flip(0)
    return flat

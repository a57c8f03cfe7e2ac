"""FNet mixing across ranks by PyTorch's FFT: on CPUs, with padding, and where kernels do not fit.

The transform over the width is local to a token; the one over the tokens needs whole columns. Only
columns j <= D // 2 of the spectrum are exchanged, as complex numbers, one chunk at a time. The real
parts of the results are exchanged back, with those of their mirror images, the other columns.

Both are stored in one tensor [B, n, D]: the real part of column j at j, and its imaginary part at
D - j, the position of its mirror image. Columns 0 and D / 2 are real, and their own mirror images.

Shapes: B batch, n own tokens, N all tokens, D width, c own columns of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._padding import each_length, zero_padding
from flashmix.ops._precision import transform_dtype
from flashmix.parallel.comm.chunks import (
    ColumnChunk,
    chunk_sizes,
    pipelined_all_to_all,
    split_columns,
)
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.ranks import even_split

WIDTH_CHUNK = {"cpu": 512, "cuda": 16_384}
"""Least tokens whose width is transformed at a time: on a GPU each step costs launches."""
MAX_WIDTH_CHUNKS = {"cpu": 64, "cuda": 2}
"""Most such steps: more hold less memory."""
MIN_COLUMNS = 3
"""Least columns of a chunk: fewer are too far apart in memory to be gathered fast."""


def exchange_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of exchanged columns: bfloat16 as it is; float16, whose range is short, float32."""
    return dtype if dtype == torch.bfloat16 else transform_dtype(dtype)


def mix_by_fft(x: Tensor, layout: Layout, norm: str) -> Tensor:
    """Re(FFT2) of all tokens; ``x`` and the result [B, n, D]."""
    batch, _, dim = x.shape
    shares = even_split(dim // 2 + 1, layout.ranks.size)
    column = 2 * batch * layout.total * exchange_dtype(x.dtype).itemsize
    chunks = split_columns(shares, column, x.device.type, MIN_COLUMNS)
    y = _transform_width(x, layout, norm)
    pipelined_all_to_all(
        [[2 * batch * size for size in chunk_sizes(chunk)] for chunk in chunks],
        layout,
        lambda k: _gather_columns(y, chunks[k]),
        lambda _, flat: _transform_tokens(flat, batch, layout, norm),
        lambda k, flat: _scatter_columns(y, chunks[k], flat),
    )
    return y.to(x.dtype)


def _transform_width(x: Tensor, layout: Layout, norm: str) -> Tensor:
    """The half-spectrum of each token, stored in [B, n, D] as the module says."""
    dim, mask = x.shape[2], layout.own_mask
    y = torch.empty(x.shape, dtype=exchange_dtype(x.dtype), device=x.device)
    place = x.device.type
    step = max(WIDTH_CHUNK[place], x.shape[1] // MAX_WIDTH_CHUNKS[place])
    for start in range(0, x.shape[1], step):
        some = slice(start, start + step)
        wide = zero_padding(x[:, some], None if mask is None else mask[:, some])
        half = torch.fft.rfft(wide.to(transform_dtype(x.dtype)), dim=2, norm=norm)
        y[:, some, : half.shape[2]] = half.real
        y[:, some, half.shape[2] :] = half.imag[:, :, 1 : (dim + 1) // 2].flip(2)
    return y


def _paired(some: slice, dim: int) -> slice:
    """Those of the columns that have an imaginary part and a mirror image."""
    first = max(some.start, 1)
    return slice(first, max(first, min(some.stop, (dim + 1) // 2)))


def _gather_columns(y: Tensor, chunk: ColumnChunk) -> Tensor:
    """The send buffer of a chunk: for each rank in turn [n, B, c, 2], flat."""
    batch, count, dim = y.shape
    sizes = [2 * batch * count * (some.stop - some.start) for some in chunk]
    flat = y.new_empty(sum(sizes))
    for part, some in zip(flat.split(sizes), chunk, strict=True):
        real, imaginary = part.view(count, batch, some.stop - some.start, 2).unbind(-1)
        both = _paired(some, dim)
        real.copy_(y[:, :, some].transpose(0, 1))
        imaginary[:, :, : both.start - some.start] = 0
        imaginary[:, :, both.stop - some.start :] = 0
        imaginary[:, :, both.start - some.start : both.stop - some.start] = (
            y[:, :, dim - both.stop + 1 : dim - both.start + 1].flip(2).transpose(0, 1)
        )
    return flat


def _scatter_columns(y: Tensor, chunk: ColumnChunk, flat: Tensor) -> None:
    """Store real parts and mirror images, laid out as :func:`_gather_columns` does, in ``y``."""
    batch, count, dim = y.shape
    sizes = [2 * batch * count * (some.stop - some.start) for some in chunk]
    for part, some in zip(flat.split(sizes), chunk, strict=True):
        plain, mirrored = part.view(count, batch, some.stop - some.start, 2).unbind(-1)
        both = _paired(some, dim)
        y[:, :, some] = plain.transpose(0, 1)
        mirrored = mirrored[:, :, both.start - some.start : both.stop - some.start]
        y[:, :, dim - both.stop + 1 : dim - both.start + 1] = mirrored.flip(2).transpose(0, 1)


def _transform_tokens(flat: Tensor, batch: int, layout: Layout, norm: str) -> Tensor:
    """Transform columns [N, B, c, 2] in place to real parts and those of the mirror images."""
    if not flat.numel():
        return flat

    def transform(columns: Tensor) -> Tensor:
        y = torch.fft.fft(columns, dim=1, norm=norm)
        if layout.mask is not None:  # the real part of y[-k], the mirror image
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

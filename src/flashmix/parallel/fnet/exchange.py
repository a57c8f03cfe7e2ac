"""FNet mixing across ranks: by Triton's kernels where they support the call, else PyTorch's FFT.

Shapes: B batch, n own tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.parallel.comm.chunks import pipelined_all_to_all
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.shared_memory import shared_memory
from flashmix.parallel.fnet.fft import mix_by_fft
from flashmix.parallel.fnet.plan import kernels_support


class _FNet(torch.autograd.Function):
    """FNet mixing is its own adjoint, so the backward saves nothing."""

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


def _mix(x: Tensor, layout: Layout, norm: str) -> Tensor:
    if not len(x):
        return torch.empty_like(x)  # an empty batch, on every rank
    if kernels_support(x, layout):
        return _mix_by_kernels(x, layout, norm)
    return mix_by_fft(x, layout, norm)


def _mix_by_kernels(x: Tensor, layout: Layout, norm: str) -> Tensor:
    from flashmix.parallel.fnet.columns import columns_of  # needs Triton

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

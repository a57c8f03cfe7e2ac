"""FNet mixing over ranks: the width's transform stays local, the tokens' runs on whole columns.

Only the columns j <= D // 2 of the spectrum travel, as complex numbers; what comes back are the
real parts and their mirror images, which are the other columns. The backward is the forward.

Shapes: B batch, n own tokens, N all tokens, D width, J = D // 2 + 1 columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops._padding import each_length, zero_padding
from flashmix.ops._precision import transform_dtype
from flashmix.parallel._collectives import exchange
from flashmix.parallel._layout import Layout
from flashmix.parallel._ranks import even_split


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


def _mix(x: Tensor, layout: Layout, norm: str) -> Tensor:
    dim = x.shape[2]
    columns, tokens = (2, even_split(dim // 2 + 1, layout.ranks.size)), layout.tokens(1)
    # Nested, so that each intermediate is freed as soon as the next one stands.
    back = exchange(
        _over_tokens(
            exchange(_over_width(x, layout, norm), layout.ranks, columns, tokens), layout, norm
        ).to(x.dtype),
        layout.ranks,
        tokens,
        columns,
    )
    plain, mirrored = back.unbind(-1)
    return torch.cat((plain, mirrored[:, :, 1 : (dim + 1) // 2].flip(2)), 2)


def _over_width(x: Tensor, layout: Layout, norm: str) -> Tensor:
    """Half of each token's spectrum, [B, n, J, 2]."""
    wide = zero_padding(x, layout.own_mask).to(transform_dtype(x.dtype))
    return torch.view_as_real(torch.fft.rfft(wide, dim=2, norm=norm))


def _over_tokens(columns: Tensor, layout: Layout, norm: str) -> Tensor:
    """Real parts of the transform of some columns, beside their mirror images: [B, N, some, 2]."""

    def transform(columns: Tensor) -> Tensor:
        y = torch.fft.fft(columns, dim=1, norm=norm)
        # y[-k], the mirror image; only the real parts matter.
        y.imag[:, :1], y.imag[:, 1:] = y.real[:, :1], y.real[:, 1:].flip(1)
        return y

    if not columns.numel():
        return columns
    mixed = each_length(transform, layout.mask, torch.view_as_complex(columns))
    return torch.view_as_real(mixed)

"""Filtering by few modes across ranks: by Triton's kernels where they support it, else PyTorch.

Shapes: B batch, n own tokens, D channels, M modes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._triton import availability
from flashmix.ops._triton.launch import MOST_OFFSET
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.spectral import modes


def filter_by_modes(
    x: Tensor, weight: Tensor, bias: Tensor | None, unitary: bool, layout: Layout, whole: bool
) -> Tensor:
    """irfft(W * rfft(x)) + b of all tokens, of which ``x`` and the result [B, n, D] are a slice.

    Args:
        x: [B, n, D].
        weight: W, real [M, D, 2].
        bias: b, [D], or None.
        unitary: pass the higher modes unchanged, as :func:`flashmix.ops.spectral` does.
        layout: of the tokens.
        whole: every rank gets the whole gradients of W and b, which cost no message; else the part
            that its slice has in them.
    """
    if kernels_support(x, weight, layout):
        from flashmix.parallel.spectral import modes_function  # needs Triton

        return modes_function.filter_by_modes(x, weight, bias, unitary, layout, whole)
    return modes.filter_by_modes(x, weight, bias, unitary, layout, whole)


def kernels_support(x: Tensor, weight: Tensor, layout: Layout) -> bool:
    """Whether Triton's kernels take such tokens; every rank finds the same."""
    return (
        x.is_cuda
        and x.dtype in availability.DTYPES
        and weight.dtype != torch.float64
        and layout.mask is None
        and availability.missing() is None
        and 2 * weight.shape[0] * x.shape[2] * modes.MAX_BATCHED_CHUNKS["cuda"] < MOST_OFFSET
    )

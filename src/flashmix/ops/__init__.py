"""The mixing operators as functions, each with a reference and faster implementations.

An operator has a folder: ``api.py`` (validation and dispatch), ``reference.py`` (the
specification) and one file for each faster implementation. Its OPERATOR is listed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashmix.ops._registry import Explanation, explain_choice
from flashmix.ops.attention import OPERATOR as _ATTENTION
from flashmix.ops.attention import attention
from flashmix.ops.block_topk_attention import OPERATOR as _BLOCK_TOPK_ATTENTION
from flashmix.ops.fnet import OPERATOR as _FNET
from flashmix.ops.fnet import fnet
from flashmix.ops.fourier import OPERATOR as _FOURIER
from flashmix.ops.fourier import fourier, fourier_weights
from flashmix.ops.local_attention import OPERATOR as _LOCAL_ATTENTION
from flashmix.ops.local_attention import local_attention
from flashmix.ops.spectral import OPERATOR as _SPECTRAL
from flashmix.ops.spectral import spectral
from flashmix.ops.topk_attention import OPERATOR as _TOPK_ATTENTION
from flashmix.ops.topk_attention import topk_attention

__all__ = [
    "OPERATORS",
    "Explanation",
    "attention",
    "explain",
    "fnet",
    "fourier",
    "fourier_weights",
    "local_attention",
    "spectral",
    "topk_attention",
]

OPERATORS = {
    operator.name: operator
    for operator in (
        _ATTENTION,
        _LOCAL_ATTENTION,
        _TOPK_ATTENTION,
        _BLOCK_TOPK_ATTENTION,
        _FNET,
        _SPECTRAL,
        _FOURIER,
    )
}


def explain(
    op: str,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    machine: str | None = None,
    **options: int | bool,
) -> Explanation:
    """Tell which implementation ``impl="auto"`` runs for a case, and why.

    Args:
        op: an operator's name, for example "fnet" or "topk_attention".
        shape: the shape of its first argument, [B, N, D] or [B, H, N, dh].
        dtype: a floating dtype.
        device: for example "cpu" or "cuda".
        machine: the name of another machine of that kind, as ``torch.cuda.get_device_name()`` gives
            it there, for example "NVIDIA H200": nothing counts as missing on it.
        options: what else the choice depends on: ``masked``, ``causal``, for "spectral" ``modes``,
            for "local_attention" ``window`` and ``gradient`` (whether autograd records the call),
            for top-k attention ``topk``.

    Returns:
        An :class:`Explanation`; print it for the story.

    Raises:
        ArgumentError: an unknown op, a shape with the wrong number of axes, another dtype.
    """
    return explain_choice(OPERATORS, op, shape, dtype, device, options, machine)

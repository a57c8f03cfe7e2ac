"""The mixing operators as functions, each with a reference and faster implementations.

An operator has a folder: ``api.py`` (validation and dispatch), ``reference.py`` (the
specification) and one file for each faster implementation. Its OPERATOR is listed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flashmix.errors import unknown_choice
from flashmix.ops._packed import Packed, pack, unpack
from flashmix.ops.attention import OPERATOR as _ATTENTION
from flashmix.ops.attention import attention
from flashmix.ops.block_topk_attention import OPERATOR as _BLOCK_TOPK_ATTENTION
from flashmix.ops.dispatch import Decision, Direction, Implementation, explain_choice
from flashmix.ops.fnet import OPERATOR as _FNET
from flashmix.ops.fnet import fnet
from flashmix.ops.fourier import OPERATOR as _FOURIER
from flashmix.ops.fourier import fourier, fourier_weights
from flashmix.ops.local_attention import OPERATOR as _LOCAL_ATTENTION
from flashmix.ops.local_attention import local_attention
from flashmix.ops.local_attention.window import keys_in_view
from flashmix.ops.spectral import OPERATOR as _SPECTRAL
from flashmix.ops.spectral import spectral
from flashmix.ops.topk_attention import OPERATOR as _TOPK_ATTENTION
from flashmix.ops.topk_attention import topk_attention

__all__ = [
    "OPERATORS",
    "Decision",
    "Implementation",
    "Packed",
    "attention",
    "explain",
    "fnet",
    "fourier",
    "fourier_weights",
    "local_attention",
    "pack",
    "register_implementation",
    "spectral",
    "topk_attention",
    "unpack",
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
    direction: Direction = "forward",
    machine: str | None = None,
    **options: Any,
) -> Decision:
    """Tell which implementation ``impl="auto"`` runs for a case, and why.

    Args:
        op: an operator's name, for example "fnet" or "topk_attention".
        shape: the shape of its first argument, [B, N, D] or [B, H, N, dh].
        dtype: a floating dtype.
        device: for example "cpu" or "cuda".
        direction: "forward", or "training" where autograd records the call.
        machine: the name of another machine of that kind, as ``torch.cuda.get_device_name()`` gives
            it there, for example "NVIDIA H200": nothing counts as missing on it.
        options: what else the choice depends on: ``masked``, ``packed`` (``shape`` is then that of
            the sequences padded to the longest), ``causal``, for "spectral" ``modes``, for
            "local_attention" ``window`` (an integer or a pair), for top-k attention ``topk``.

    Returns:
        The decision that a call would take; print it for the whole of it.

    Raises:
        ArgumentError: an unknown op, a shape with the wrong number of axes, another dtype
            or direction.
    """
    if options.get("packed"):
        options["masked"] = True
    if "window" in options:
        options["window"] = keys_in_view(options["window"])
    return explain_choice(OPERATORS, op, shape, dtype, device, options, direction, machine)


def register_implementation(op: str, implementation: Implementation) -> None:
    """Add an implementation of an op from outside the package.

    ``impl=`` takes it by its name; ``auto`` where ``flashmix tune`` found it the fastest. A package
    that is installed can do it without being imported: it names, as an entry point of the group
    ``flashmix.implementations``, a function without arguments that calls this, or a module.

    Args:
        op: an operator's name, for example "fnet".
        implementation: its ``run`` takes what those of the op take; see ``OPERATORS[op]``.

    Raises:
        ArgumentError: there is no such op, or it has an implementation of that name.
    """
    if op not in OPERATORS:
        raise unknown_choice("op", op, OPERATORS)
    OPERATORS[op].register(implementation)

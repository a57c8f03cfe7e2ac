"""Public sliding-window attention op: validation and dispatch."""

from __future__ import annotations

import functools
from typing import Any

import torch as _torch
from torch import Tensor

from flashmix.ops import _checks
from flashmix.ops._case import Case
from flashmix.ops._compile import constant_in_graphs, kept_for_any
from flashmix.ops._cpu import library
from flashmix.ops._dense import repeat_heads
from flashmix.ops._library import needs_gradient
from flashmix.ops._registry import Implementation, Operator
from flashmix.ops._triton import availability
from flashmix.ops.local_attention import cpu, reference, torch


def _triton(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, causal: bool
) -> Tensor:
    from flashmix.ops.local_attention.triton import local_attention

    return local_attention(q, k, v, mask, window, causal)


@functools.cache
def _processor() -> dict[str, Any]:
    return getattr(_torch.cpu, "get_capabilities", dict)()


@constant_in_graphs
def _has_amx() -> bool:
    return bool(_processor().get("amx_bf16"))


def _outdone(case: Case) -> str | None:
    if case.dtype != _torch.bfloat16 or not _has_amx():
        return None
    reach, causal = case.options.get("window", 0) // 2, bool(case.options.get("causal"))
    n = case.shape[2]
    if case.options.get("gradient") and (kept_for_any(n) or not torch.at_once(n, reach, causal)):
        return None
    return "is slower than bfloat16 products on this processor (AMX), but to train short windows"


OPERATOR = Operator(
    name="local_attention",
    axes="B, H, N, dh",
    implementations=(
        Implementation(
            name="cpu",
            run=cpu.local_attention,
            summary="native kernels; the window's weights stay in cache, computed anew to train",
            devices=library.DEVICES,
            missing=library.missing,
            outdone=_outdone,
        ),
        Implementation(
            name="torch",
            run=torch.local_attention,
            summary="blocks of queries against overlapping key blocks through fused attention",
        ),
        Implementation(
            name="triton",
            run=_triton,
            summary="tiles that visit only the keys in view; saves the output and a number a query",
            devices=availability.DEVICES,
            dtypes=availability.DTYPES,
            missing=availability.missing,
            unfit=availability.too_wide,
            preferred=False,
            grouped=True,
        ),
        Implementation(
            name="reference",
            run=reference.local_attention,
            summary="the formula, with the N x N weights in memory",
        ),
    ),
)


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    mask: Tensor | None = None,
    causal: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Sliding-window attention: query i sees the keys with |i - j| <= window // 2.

    Distances count real tokens, so padding between two tokens does not part them
    (the pattern of Beltagy et al. 2020, Longformer, section 3.1).

    Args:
        q, k, v: [B, H, N, dh], one floating dtype and device; k and v may have fewer heads, a
            divisor of H, and are then shared by neighbouring heads of q.
        window: keys in view, in tokens, >= 1; ``window // 2`` on each side and the token itself.
        mask: bool [B, N], True = a real token. Outputs at padding are zero.
        causal: query i sees keys j <= i only.
        impl: "auto", "cpu" (native kernels), "torch", "triton" (heads up to 256 wide) or
            "reference".

    Returns:
        [B, H, N, dh] in the dtype of ``q``. Work and memory are O(N * window) but for "reference".

    Raises:
        ArgumentError: an argument has the wrong shape, dtype or value.
        ImplementationError: ``impl`` cannot run here.
    """
    _checks.check_qkv("local_attention", q, k, v, mask, grouped=True)
    _checks.check_count("local_attention", "window", window)
    _checks.check_flag("local_attention", "causal", causal)
    options = {"masked": mask is not None, "causal": causal, "window": window}
    options["gradient"] = needs_gradient(q, k, v)
    case = Case(tuple(q.shape), q.dtype, q.device, options)
    chosen = OPERATOR.choose(impl, q.dtype, q.device, case)
    if not chosen.grouped:
        k, v = repeat_heads(q, k, v)
    y: Tensor = chosen.run(q, k, v, mask, window, causal)
    return y

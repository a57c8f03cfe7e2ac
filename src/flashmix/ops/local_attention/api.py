"""Public sliding-window attention op: validation and dispatch."""

from __future__ import annotations

import functools
from typing import Any

import torch as _torch
from torch import Tensor

from flashmix.ops import _checks
from flashmix.ops._compile import constant_in_graphs, kept_for_any
from flashmix.ops._dense import repeat_heads
from flashmix.ops._library import direction_of
from flashmix.ops._triton import availability
from flashmix.ops.dispatch import Implementation, Operator, Signature
from flashmix.ops.dispatch.families import cpu_implementation, triton_implementation
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


def _deprioritized_reason(signature: Signature) -> str | None:
    if signature.dtype != _torch.bfloat16 or not _has_amx():
        return None
    reach, causal = signature.options.get("window", 0) // 2, bool(signature.options.get("causal"))
    n = signature.shape[2]
    if signature.direction == "training" and (
        kept_for_any(n) or not torch.at_once(n, reach, causal)
    ):
        return None
    return "is slower than bfloat16 products on this processor (AMX), but to train short windows"


OPERATOR = Operator(
    name="local_attention",
    axes="B, H, N, dh",
    implementations=[
        cpu_implementation(
            cpu.local_attention,
            "native kernels; the window's weights stay in cache, computed anew to train",
            deprioritized_reason=_deprioritized_reason,
        ),
        Implementation(
            name="torch",
            run=torch.local_attention,
            summary="blocks of queries against overlapping key blocks through fused attention",
            launches=8,
        ),
        triton_implementation(
            _triton,
            "tiles that visit only the keys in view; saves the output and a number a query",
            unsupported_reason=availability.too_wide,
            grouped_heads=True,
            scales_with="window",
        ),
        Implementation(
            name="reference",
            run=reference.local_attention,
            summary="the formula, with the N x N weights in memory",
        ),
    ],
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
    signature = Signature(tuple(q.shape), q.dtype, q.device, options, direction_of(q, k, v))
    chosen = OPERATOR.select(impl, signature).implementation
    if not chosen.grouped_heads:
        k, v = repeat_heads(q, k, v)
    y: Tensor = chosen.run(q, k, v, mask, window, causal)
    return y

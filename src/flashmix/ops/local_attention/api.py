"""Public sliding-window attention op: validation and dispatch."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from flashmix.ops import _checks, _packed
from flashmix.ops._compile import constant_in_graphs, kept_for_any
from flashmix.ops._dense import repeat_heads
from flashmix.ops._library import direction_of
from flashmix.ops._triton import availability
from flashmix.ops.dispatch import Implementation, Operator, Signature
from flashmix.ops.dispatch.families import cpu_implementation, triton_implementation
from flashmix.ops.local_attention import cpu, reference, torch_impl
from flashmix.ops.local_attention.window import Window, check_window, keys_in_view, reach


def _triton(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: int, after: int
) -> Tensor:
    from flashmix.ops.local_attention.triton import local_attention

    return local_attention(q, k, v, mask, before, after)


@functools.cache
def _processor() -> dict[str, Any]:
    return getattr(torch.cpu, "get_capabilities", dict)()


@constant_in_graphs
def _has_amx() -> bool:
    return bool(_processor().get("amx_bf16"))


def _deprioritized_reason(signature: Signature) -> str | None:
    if signature.dtype != torch.bfloat16 or not _has_amx():
        return None
    options, n = signature.options, signature.shape[2]
    sides = reach(options.get("window", 1), bool(options.get("causal")))
    if signature.direction == "training" and (kept_for_any(n) or not torch_impl.at_once(n, *sides)):
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
            packed=cpu.packed,
        ),
        Implementation(
            name="torch",
            run=torch_impl.local_attention,
            summary="blocks of queries against overlapping key blocks through fused attention",
            launches=8,
        ),
        triton_implementation(
            _triton,
            "tiles that visit only the keys in view; saves the output and a number a query",
            unsupported_reason=availability.too_wide,
            shared_memory={2: 98816, 4: 96 << 10},
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
    window: Window,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    causal: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Sliding-window attention: each query sees the keys in a window around it.

    Distances count real tokens, so padding between two tokens does not part them
    (the pattern of Beltagy et al. 2020, Longformer, section 3.1).

    Args:
        q, k, v: [B, H, N, dh], one floating dtype and device; k and v may have fewer heads, a
            divisor of H, and are then shared by neighbouring heads of q.
        window: an integer w >= 1: query i sees the keys with abs(i - j) <= w // 2, and with
            ``causal`` the last w, its own among them (``sliding_window`` of Mistral and Hugging
            Face). Or a pair (left, right): those with i - left <= j <= i + right, as in
            FlashAttention.
        mask: bool [B, N], True = a real token. Outputs at padding are zero.
        cu_seqlens: int32 [S + 1] on the same device, rising from 0 to T, where the tokens of S
            sequences are packed, [T, H, dh]: sequence s is cu_seqlens[s] to cu_seqlens[s + 1].
            Excludes ``mask``. On a GPU the values are not checked, which the host would wait for.
        max_seqlen: with ``cu_seqlens``, tokens of the longest sequence or a bound of it. On a GPU
            it saves work, or for implementations that pad a wait of the host.
        causal: query i sees keys j <= i only, whatever the window's right side.
        impl: "auto", "cpu" (native kernels), "torch", "triton" (heads up to 256 wide) or
            "reference".

    Returns:
        [B, H, N, dh], or packed [T, H, dh], in the dtype of ``q``. Work and memory are
        O(N * window) but for "reference".

    Raises:
        ArgumentError: an argument has the wrong shape, dtype or value.
        ImplementationError: ``impl`` cannot run here.
    """
    check_window("local_attention", window)
    _checks.check_flag("local_attention", "causal", causal)
    options = {"masked": mask is not None, "causal": causal, "window": keys_in_view(window)}
    if cu_seqlens is not None or max_seqlen is not None:
        _checks.check_qkv("local_attention", q, k, v, None, grouped=True, legend="T, H, dh")
        sequences = _packed.check_offsets("local_attention", mask, cu_seqlens, max_seqlen, q)
        sides = reach(window, causal)
        return _packed.run_packed(
            OPERATOR, impl, *sequences, (q, k, v), rest=sides, options=options
        )
    _checks.check_qkv("local_attention", q, k, v, mask, grouped=True)
    signature = Signature(tuple(q.shape), q.dtype, q.device, options, direction_of(q, k, v))
    chosen = OPERATOR.select(impl, signature).implementation
    if not chosen.grouped_heads:
        k, v = repeat_heads(q, k, v)
    y: Tensor = chosen.run(q, k, v, mask, *reach(window, causal))
    return y

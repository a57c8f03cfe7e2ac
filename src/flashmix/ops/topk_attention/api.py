"""Public top-k attention op: validation and dispatch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flashmix.errors import ImplementationError
from flashmix.ops import _checks, _packed, block_topk_attention
from flashmix.ops._compile import exported_for_any
from flashmix.ops._dense import repeat_heads
from flashmix.ops._library import direction_of
from flashmix.ops._triton import availability
from flashmix.ops.dispatch import Implementation, Operator, Signature
from flashmix.ops.dispatch.families import cpu_implementation, triton_implementation
from flashmix.ops.topk_attention import cpu, reference, torch_impl

MOST_TRITON = 4096
"""The largest k of the Triton kernels, which cut a query's candidates in one tile."""


def _triton(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    from flashmix.ops.topk_attention.triton import topk_attention

    return topk_attention(q, k, v, mask, topk, causal)


def _triton_unsupported_reason(signature: Signature) -> str | None:
    topk = signature.options.get("topk", 1)
    if topk > MOST_TRITON and topk < signature.shape[2]:
        return f"takes topk up to {MOST_TRITON}, not {topk}"
    return availability.too_wide(signature)


OPERATOR = Operator(
    name="topk_attention",
    axes="B, H, N, dh",
    implementations=[
        cpu_implementation(
            cpu.topk_attention,
            "native kernels; scores stay in cache, k indices and weights saved to train",
        ),
        Implementation(
            name="torch",
            run=torch_impl.topk_attention,
            summary="chunks of queries; holds k indices and weights per query, never N x N",
            launches=20,
        ),
        triton_implementation(
            _triton,
            "two passes over scores never stored; k indices and weights saved to train",
            unsupported_reason=_triton_unsupported_reason,
            shared_memory={2: 98816, 4: 192 << 10},
            grouped_heads=True,
            launches=5,
            scales_with="topk",
        ),
        Implementation(
            name="reference",
            run=reference.topk_attention,
            summary="the formula, with the N x N scores in memory",
        ),
    ],
)


def topk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    topk: int,
    selection: Literal["exact", "block"] = "exact",
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    causal: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Attention to the ``topk`` keys with the largest scores, for each query and head.

    Gradients flow through the kept scores only; the choice itself has none.

    Args:
        q, k, v: [B, H, N, dh], one floating dtype and device; k and v may have fewer heads, a
            divisor of H, and are then shared by neighbouring heads of q.
        topk: keys kept, >= 1; all of them where there are fewer.
        selection: "exact" keeps exactly ``topk`` keys by scores accumulated in float32 (float64
            for float64), ties to the lower index; finding them takes O(N^2) work. "block"
            approximates: each block of 64 queries keeps whole blocks of 64 keys, enough to hold
            ``topk`` keys, by the score of the blocks' means; O(N * topk) work. These scores are
            rounded as PyTorch's batched product rounds them, which may depend on the batch: of
            blocks whose scores nearly tie, another batch may choose another.
        mask: bool [B, N], True = a real token. Outputs at padding are zero.
        cu_seqlens: int32 [S + 1] on the same device, rising from 0 to T, where the tokens of S
            sequences are packed, [T, H, dh]: sequence s is cu_seqlens[s] to cu_seqlens[s + 1].
            Excludes ``mask``. On a GPU the values are not checked, which the host would wait for.
        max_seqlen: with ``cu_seqlens``, tokens of the longest sequence or a bound of it. On a GPU
            it saves work, or for implementations that pad a wait of the host.
        causal: query i sees keys j <= i only.
        impl: "auto", "cpu" (native kernels), "torch", "triton" (heads up to 256 wide; exact
            selection of up to 4,096 keys) or "reference".

    Returns:
        [B, H, N, dh], or packed [T, H, dh], in the dtype of ``q``.

    Raises:
        ArgumentError: an argument has the wrong shape, dtype or value.
        ImplementationError: ``impl`` cannot run here.
    """
    _checks.check_count("topk_attention", "topk", topk)
    _checks.check_choice("topk_attention", "selection", selection, ("exact", "block"))
    _checks.check_flag("topk_attention", "causal", causal)
    packed = cu_seqlens is not None or max_seqlen is not None
    if packed:
        _checks.check_qkv("topk_attention", q, k, v, None, grouped=True, legend="T, H, dh")
    else:
        _checks.check_qkv("topk_attention", q, k, v, mask, grouped=True)
    if selection == "block" and exported_for_any(q.shape[0 if packed else 2]):
        raise ImplementationError(
            "topk_attention: selection='block' cannot be exported for any N, since the number of "
            "its blocks is fixed in the graph; export with a fixed N, or use selection='exact'"
        )
    operator = OPERATOR if selection == "exact" else block_topk_attention.OPERATOR
    options = {"masked": mask is not None, "causal": causal, "topk": topk}
    if packed:
        sequences = _packed.check_offsets("topk_attention", mask, cu_seqlens, max_seqlen, q)
        return _packed.run_packed(
            operator, impl, *sequences, (q, k, v), rest=(topk, causal), options=options
        )
    signature = Signature(tuple(q.shape), q.dtype, q.device, options, direction_of(q, k, v))
    chosen = operator.select(impl, signature).implementation
    if not chosen.grouped_heads:
        k, v = repeat_heads(q, k, v)
    y: Tensor = chosen.run(q, k, v, mask, topk, causal)
    return y

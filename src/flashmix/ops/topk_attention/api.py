"""Public top-k attention op: validation and dispatch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flashmix.errors import ImplementationError
from flashmix.ops import _checks, block_topk_attention
from flashmix.ops._case import Case
from flashmix.ops._compile import exported_for_any
from flashmix.ops._cpu import library
from flashmix.ops._dense import repeat_heads
from flashmix.ops._registry import Implementation, Operator
from flashmix.ops._triton import availability
from flashmix.ops.topk_attention import cpu, reference, torch

MOST_TRITON = 4096
"""The largest k of the Triton kernels, which cut a query's candidates in one tile."""


def _triton(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    from flashmix.ops.topk_attention.triton import topk_attention

    return topk_attention(q, k, v, mask, topk, causal)


def _unfit_for_triton(case: Case) -> str | None:
    topk = case.options.get("topk", 1)
    if topk > MOST_TRITON and topk < case.shape[2]:
        return f"takes topk up to {MOST_TRITON}, not {topk}"
    return availability.too_wide(case)


OPERATOR = Operator(
    name="topk_attention",
    axes="B, H, N, dh",
    implementations=(
        Implementation(
            name="cpu",
            run=cpu.topk_attention,
            summary="native kernels; scores stay in cache, k indices and weights saved to train",
            devices=library.DEVICES,
            missing=library.missing,
        ),
        Implementation(
            name="torch",
            run=torch.topk_attention,
            summary="chunks of queries; holds k indices and weights per query, never N x N",
        ),
        Implementation(
            name="triton",
            run=_triton,
            summary="two passes over scores never stored; k indices and weights saved to train",
            devices=availability.DEVICES,
            dtypes=availability.DTYPES,
            missing=availability.missing,
            unfit=_unfit_for_triton,
            preferred=False,
            grouped=True,
        ),
        Implementation(
            name="reference",
            run=reference.topk_attention,
            summary="the formula, with the N x N scores in memory",
        ),
    ),
)


def topk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    topk: int,
    selection: Literal["exact", "block"] = "exact",
    mask: Tensor | None = None,
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
        causal: query i sees keys j <= i only.
        impl: "auto", "cpu" (native kernels), "torch", "triton" (heads up to 256 wide; exact
            selection of up to 4,096 keys) or "reference".

    Returns:
        [B, H, N, dh] in the dtype of ``q``.

    Raises:
        ArgumentError: an argument has the wrong shape, dtype or value.
        ImplementationError: ``impl`` cannot run here.
    """
    _checks.check_qkv("topk_attention", q, k, v, mask, grouped=True)
    _checks.check_count("topk_attention", "topk", topk)
    _checks.check_choice("topk_attention", "selection", selection, ("exact", "block"))
    _checks.check_flag("topk_attention", "causal", causal)
    if selection == "block" and exported_for_any(q.shape[2]):
        raise ImplementationError(
            "topk_attention: selection='block' cannot be exported for any N, since the number of "
            "its blocks is fixed in the graph; export with a fixed N, or use selection='exact'"
        )
    operator = OPERATOR if selection == "exact" else block_topk_attention.OPERATOR
    options = {"masked": mask is not None, "causal": causal, "topk": topk}
    case = Case(tuple(q.shape), q.dtype, q.device, options)
    chosen = operator.choose(impl, q.dtype, q.device, case)
    if not chosen.grouped:
        k, v = repeat_heads(q, k, v)
    y: Tensor = chosen.run(q, k, v, mask, topk, causal)
    return y

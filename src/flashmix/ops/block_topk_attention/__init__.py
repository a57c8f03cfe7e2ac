"""Block selection for ``topk_attention(selection="block")``, whose public function it serves."""

from torch import Tensor

from flashmix.ops._cpu import library
from flashmix.ops._registry import Implementation, Operator
from flashmix.ops._triton import availability
from flashmix.ops.block_topk_attention import cpu, reference, torch


def _triton(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    from flashmix.ops.block_topk_attention.triton import block_topk_attention

    return block_topk_attention(q, k, v, mask, topk, causal)


OPERATOR = Operator(
    name="block_topk_attention",
    axes="B, H, N, dh",
    implementations=(
        Implementation(
            name="cpu",
            run=cpu.block_topk_attention,
            summary="native kernels; scores of the kept blocks stay in cache",
            devices=library.DEVICES,
            missing=library.missing,
        ),
        Implementation(
            name="torch",
            run=torch.block_topk_attention,
            summary="gathers the selected key blocks for each block of queries",
        ),
        Implementation(
            name="triton",
            run=_triton,
            summary="tiles that visit the selected key blocks where they stand, gathering nothing",
            devices=availability.DEVICES,
            dtypes=availability.DTYPES,
            missing=availability.missing,
            unfit=availability.too_wide,
            preferred=False,
            grouped=True,
        ),
        Implementation(
            name="reference",
            run=reference.block_topk_attention,
            summary="the formula, with the N x N weights in memory",
        ),
    ),
)

__all__ = ["OPERATOR"]

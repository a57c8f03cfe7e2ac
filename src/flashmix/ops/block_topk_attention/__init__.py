"""Block selection for ``topk_attention(selection="block")``, whose public function it serves."""

from flashmix.ops._registry import Implementation, Operator
from flashmix.ops.block_topk_attention import reference, torch

OPERATOR = Operator(
    name="block_topk_attention",
    axes="B, H, N, dh",
    implementations=(
        Implementation(
            name="torch",
            run=torch.block_topk_attention,
            summary="gathers the selected key blocks for each block of queries",
        ),
        Implementation(
            name="reference",
            run=reference.block_topk_attention,
            summary="the formula, with the N x N weights in memory",
        ),
    ),
)

__all__ = ["OPERATOR"]

"""Block selection for ``topk_attention(selection="block")``, whose public function it serves."""

from torch import Tensor

from flashmix.ops._triton import availability
from flashmix.ops.block_topk_attention import cpu, reference, torch_impl
from flashmix.ops.dispatch import Implementation, Operator
from flashmix.ops.dispatch.families import cpu_implementation, triton_implementation


def _triton(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, topk: int, causal: bool
) -> Tensor:
    from flashmix.ops.block_topk_attention.triton import block_topk_attention

    return block_topk_attention(q, k, v, mask, topk, causal)


OPERATOR = Operator(
    name="block_topk_attention",
    axes="B, H, N, dh",
    implementations=[
        cpu_implementation(
            cpu.block_topk_attention,
            "native kernels; scores of the kept blocks stay in cache",
        ),
        Implementation(
            name="torch",
            run=torch_impl.block_topk_attention,
            summary="gathers the selected key blocks for each block of queries",
            launches=12,
            scales_with="topk",
        ),
        triton_implementation(
            _triton,
            "tiles that visit the selected key blocks where they stand, gathering nothing",
            unsupported_reason=availability.too_wide,
            shared_memory={2: 98816, 4: 131584},
            grouped_heads=True,
            launches=4,
            scales_with="topk",
        ),
        Implementation(
            name="reference",
            run=reference.block_topk_attention,
            summary="the formula, with the N x N weights in memory",
        ),
    ],
)

__all__ = ["OPERATOR"]

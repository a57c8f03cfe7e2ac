"""Public attention op: validation and dispatch."""

from __future__ import annotations

from torch import Tensor

from flashmix.ops import _checks
from flashmix.ops._library import direction_of
from flashmix.ops.attention import reference, torch_impl
from flashmix.ops.dispatch import Implementation, Operator, Signature

OPERATOR = Operator(
    name="attention",
    axes="B, H, N, dh",
    implementations=[
        Implementation(
            name="torch",
            run=torch_impl.attention,
            summary="PyTorch's fused scaled_dot_product_attention",
        ),
        Implementation(
            name="reference",
            run=reference.attention,
            summary="the formula, with the N x N weights in memory",
        ),
    ],
    aliases={"sdpa": "torch", "naive": "reference"},
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Scaled dot-product attention, softmax(q k^T / sqrt(dh)) v (Vaswani et al. 2017, eq. 1).

    Args:
        q, k, v: [B, H, N, dh], one floating dtype and device.
        mask: bool [B, N], True = a real token. Outputs at padding are zero.
        causal: query i sees keys j <= i only.
        impl: "auto", "torch" (alias "sdpa": fused) or "reference" (alias "naive": N x N weights).

    Returns:
        [B, H, N, dh] in the dtype of ``q``.

    Raises:
        ArgumentError: an argument has the wrong shape, dtype or value.
        ImplementationError: ``impl`` cannot run here.
    """
    _checks.check_qkv("attention", q, k, v, mask)
    _checks.check_flag("attention", "causal", causal)
    options = {"masked": mask is not None, "causal": causal}
    signature = Signature(tuple(q.shape), q.dtype, q.device, options, direction_of(q, k, v))
    y: Tensor = OPERATOR.select(impl, signature).implementation.run(q, k, v, mask, causal)
    return y

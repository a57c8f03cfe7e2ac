"""Public attention op: validation and dispatch."""

from __future__ import annotations

from torch import Tensor

from flashmix.ops import _checks, _packed
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
            packed=torch_impl.packed,
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
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    causal: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Scaled dot-product attention, softmax(q k^T / sqrt(dh)) v (Vaswani et al. 2017, eq. 1).

    Args:
        q, k, v: [B, H, N, dh], one floating dtype and device.
        mask: bool [B, N], True = a real token. Outputs at padding are zero.
        cu_seqlens: int32 [S + 1] on the same device, rising from 0 to T, where the tokens of S
            sequences are packed, [T, H, dh]: sequence s is cu_seqlens[s] to cu_seqlens[s + 1].
            Excludes ``mask``. On a GPU the values are not checked, which the host would wait for.
        max_seqlen: with ``cu_seqlens``, tokens of the longest sequence or a bound of it. On a GPU
            it saves work, or for implementations that pad a wait of the host.
        causal: query i sees keys j <= i only.
        impl: "auto", "torch" (alias "sdpa": fused) or "reference" (alias "naive": N x N weights).

    Returns:
        [B, H, N, dh], or packed [T, H, dh], in the dtype of ``q``.

    Raises:
        ArgumentError: an argument has the wrong shape, dtype or value.
        ImplementationError: ``impl`` cannot run here.
    """
    _checks.check_flag("attention", "causal", causal)
    if cu_seqlens is not None or max_seqlen is not None:
        _checks.check_qkv("attention", q, k, v, None, legend="T, H, dh")
        sequences = _packed.check_offsets("attention", mask, cu_seqlens, max_seqlen, q)
        options = {"causal": causal}
        return _packed.run_packed(
            OPERATOR, impl, *sequences, (q, k, v), rest=(causal,), options=options
        )
    _checks.check_qkv("attention", q, k, v, mask)
    options = {"masked": mask is not None, "causal": causal}
    signature = Signature(tuple(q.shape), q.dtype, q.device, options, direction_of(q, k, v))
    y: Tensor = OPERATOR.select(impl, signature).implementation.run(q, k, v, mask, causal)
    return y

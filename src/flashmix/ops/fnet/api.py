"""Public FNet op: validation and dispatch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flashmix.ops import _checks, _packed
from flashmix.ops._library import direction_of
from flashmix.ops._triton.columns import plan as columns
from flashmix.ops.dispatch import Implementation, Operator, Signature
from flashmix.ops.dispatch.families import (
    LONGEST_BY_PRODUCTS,
    cpu_implementation,
    one_call_a_length,
    triton_implementation,
)
from flashmix.ops.fnet import cpu, dense, reference, torch_impl
from flashmix.ops.fnet.plan import describe_plan, plan_unsupported_reason, width_unsupported_reason


def _triton(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    from flashmix.ops.fnet.triton import fnet

    return fnet(x, mask, norm)


def _triton_columns(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    from flashmix.ops.fnet.triton.columns import fnet

    return fnet(x, mask, norm)


def _triton_ragged(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    from flashmix.ops.fnet.triton.ragged import fnet

    return fnet(x, mask, norm)


def _triton_packed(x: Tensor, cu_seqlens: Tensor, max_seqlen: int | None, norm: str) -> Tensor:
    from flashmix.ops.fnet.triton.ragged import packed

    y: Tensor = packed(x, cu_seqlens, norm)
    return y


def _products_too_long(signature: Signature) -> str | None:
    # Of packed tokens only their number may be known, which says little of the longest sequence.
    if signature.shape[1] > LONGEST_BY_PRODUCTS and not signature.options.get("packed"):
        return f"takes N^2 D operations, too many above {LONGEST_BY_PRODUCTS:,} tokens"
    return None


def _triton_unsupported_reason(signature: Signature) -> str | None:
    _, seq_len, dim = signature.static_shape()
    length = None if signature.options.get("masked") else seq_len
    return plan_unsupported_reason(length, dim, signature.dtype)


def _describe_triton_plan(signature: Signature) -> str | None:
    _, seq_len, dim = signature.static_shape()
    if signature.options.get("masked"):
        return "true lengths without a plan go through the FFT"
    return describe_plan(seq_len, dim, signature.dtype)


def _columns_unsupported_reason(signature: Signature) -> str | None:
    _, seq_len, dim = signature.static_shape()
    if refusal := width_unsupported_reason(dim) or columns.size_unsupported_reason(seq_len, dim):
        return refusal
    return None if signature.options.get("masked") else columns.length_unsupported_reason(seq_len)


def _describe_columns_plan(signature: Signature) -> str | None:
    if signature.options.get("masked"):
        return "true lengths that are odd or have a large factor go through the FFT"
    return str(columns.digits(signature.static_shape()[1]))


def _dense_unsupported_reason(signature: Signature) -> str | None:
    _, seq_len, dim = signature.shape
    if seq_len > dense.MOST or dim > dense.MOST:
        return f"takes N and D up to {dense.MOST}, where two products still pay"
    return None


OPERATOR = Operator(
    name="fnet",
    axes="B, N, D",
    implementations=[
        cpu_implementation(
            cpu.fnet,
            "native transform of the even part, mirrored; its own backward, nothing saved",
            packed=cpu.packed,
        ),
        Implementation(
            name="torch",
            run=torch_impl.fnet,
            summary="half-spectrum real FFT, mirrored; its own backward, nothing saved",
            launches=6,
            deprioritized_reason=one_call_a_length,
        ),
        triton_implementation(
            _triton,
            "two passes of tensor-core products; its own backward, nothing saved",
            launches=2,
            shared_memory={2: 96 << 10, 4: 192 << 10},
            unsupported_reason=_triton_unsupported_reason,
            describe_plan=_describe_triton_plan,
            deprioritized_reason=one_call_a_length,
        ),
        triton_implementation(
            _triton_columns,
            "three passes, width first and half of the columns after; nothing saved",
            name="triton_columns",
            launches=3,
            shared_memory={2: 88 << 10, 4: 64 << 10},
            unsupported_reason=_columns_unsupported_reason,
            describe_plan=_describe_columns_plan,
            deprioritized_reason=one_call_a_length,
        ),
        triton_implementation(
            _triton_ragged,
            "real products with matrices made on the fly, any mixture of lengths; nothing saved",
            name="triton_ragged",
            shared_memory={2: 96 << 10, 4: 32 << 10},
            packed=_triton_packed,
            launches=3,
            deprioritized_reason=_products_too_long,
        ),
        Implementation(
            name="dense",
            run=dense.fnet,
            summary="two plain matrix products, any short length; its own backward, nothing saved",
            launches=5,
            unsupported_reason=_dense_unsupported_reason,
            deprioritized_reason=one_call_a_length,
        ),
        Implementation(
            name="reference",
            run=reference.fnet,
            summary="Re(fftn(x)), the formula",
            deprioritized_reason=one_call_a_length,
        ),
    ],
)


def fnet(
    x: Tensor,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    norm: Literal["backward", "ortho"] = "backward",
    impl: str = "auto",
) -> Tensor:
    """FNet mixing: Re(FFT over tokens of FFT over width of x) (Lee-Thorp et al. 2021, eq. 3).

    Args:
        x: [B, N, D], floating. Half types are transformed in float32 and rounded once.
        mask: bool [B, N], True = a real token. Each sequence is transformed over its own true
            length; outputs at padding are zero.
        cu_seqlens: int32 [S + 1] on the same device, rising from 0 to T, where the tokens of S
            sequences are packed, [T, D]: sequence s is cu_seqlens[s] to cu_seqlens[s + 1].
            Excludes ``mask``. On a GPU the values are not checked, which the host would wait for.
        max_seqlen: with ``cu_seqlens``, tokens of the longest sequence or a bound of it. On a GPU
            it saves work, or for implementations that pad a wait of the host.
        norm: "backward" leaves the sums unnormalised as the paper does, so outputs grow like
            sqrt(N * D) and a nonzero mean like N * D, which can exceed float16's 65,504 (the
            output is then inf); "ortho" divides by sqrt(N * D).
        impl: "auto", "cpu", "torch", "triton", "triton_columns", "triton_ragged", "dense" or
            "reference". "cpu" and "triton_ragged" take any N and D, and a padded batch of any
            lengths in one go; "triton" takes even N and widths whose factors fit its tiles,
            "triton_columns" also long N, "dense" any N and D up to 2,048.

    Returns:
        [B, N, D], or packed [T, D], in the dtype of ``x``.

    Raises:
        ArgumentError: an argument has the wrong shape, dtype or value.
        ImplementationError: ``impl`` cannot run here.
    """
    _checks.check_choice("fnet", "norm", norm, ("backward", "ortho"))
    if cu_seqlens is not None or max_seqlen is not None:
        _checks.check_floating("fnet", "x", x, "T, D")
        sequences = _packed.check_offsets("fnet", mask, cu_seqlens, max_seqlen, x)
        return _packed.run_packed(OPERATOR, impl, *sequences, (x,), rest=(norm,))
    _checks.check_tokens("fnet", x, mask)
    options = {"masked": mask is not None}
    signature = Signature(tuple(x.shape), x.dtype, x.device, options, direction_of(x))
    y: Tensor = OPERATOR.select(impl, signature).implementation.run(x, mask, norm)
    return y

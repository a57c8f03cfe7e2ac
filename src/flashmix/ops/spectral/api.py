"""Public spectral op: validation and dispatch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashmix.errors import ArgumentError
from flashmix.ops import _checks, _packed
from flashmix.ops._library import direction_of
from flashmix.ops._padding import zero_padding
from flashmix.ops._precision import transform_dtype
from flashmix.ops._triton.columns import plan
from flashmix.ops._triton.launch import MOST_OFFSET
from flashmix.ops.dispatch import Implementation, Operator, Signature
from flashmix.ops.dispatch.families import (
    LONGEST_BY_PRODUCTS,
    cpu_implementation,
    one_call_a_length,
    triton_implementation,
)
from flashmix.ops.spectral import cpu, reference, torch_impl
from flashmix.ops.spectral.plan import MOST_MODES

Run = Callable[
    [Tensor, Tensor, Tensor | None, Tensor | None, bool, int | None],
    Tensor,
]


def _then_bias(filter_tokens: Callable[..., Tensor]) -> Run:
    """Add the bias to a filter that computes in W's dtype, and round once."""

    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        unitary: bool,
        context: int | None,
    ) -> Tensor:
        y = filter_tokens(x, weight, mask, unitary, context)
        if bias is not None:
            y = zero_padding(y + bias, mask)
        return y.to(x.dtype)

    return run


def _triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    unitary: bool,
    context: int | None,
) -> Tensor:
    from flashmix.ops.spectral.triton import spectral

    return spectral(x, weight, bias, mask, unitary)


def _triton_columns(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    unitary: bool,
    context: int | None,
) -> Tensor:
    from flashmix.ops.spectral.triton.columns import spectral

    return spectral(x, weight, bias, mask, unitary)


def _triton_ragged(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    unitary: bool,
    context: int | None,
) -> Tensor:
    from flashmix.ops.spectral.triton.ragged import spectral

    return spectral(x, weight, bias, mask, unitary)


def _triton_packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    max_seqlen: int | None,
    unitary: bool,
    context: int | None,
) -> Tensor:
    from flashmix.ops.spectral.triton.ragged import packed

    y: Tensor = packed(x, weight, bias, cu_seqlens, unitary)
    return y


def _cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    unitary: bool,
    context: int | None,
) -> Tensor:
    y: Tensor = cpu.spectral(x, weight, bias, mask, unitary)
    return y


def _cpu_packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    max_seqlen: int | None,
    unitary: bool,
    context: int | None,
) -> Tensor:
    y: Tensor = cpu.packed(x, weight, bias, cu_seqlens, unitary)
    return y


def _cpu_unsupported_reason(signature: Signature) -> str | None:
    return "has no causal filter" if signature.options.get("causal") else None


def _kernels_unsupported_reason(signature: Signature) -> str | None:
    if signature.options.get("causal"):
        return "has no causal filter"
    if signature.options.get("double_weight"):
        return "does not support a float64 weight"
    return None


def _triton_unsupported_reason(signature: Signature) -> str | None:
    if refusal := _kernels_unsupported_reason(signature):
        return refusal
    _, seq_len, dim = signature.static_shape()
    if seq_len * dim >= MOST_OFFSET:
        return f"takes N * D below {MOST_OFFSET}, not {seq_len * dim}"
    if (kept := _modes_in_use(signature)) > MOST_MODES:
        return (
            f"takes at most {MOST_MODES} modes in use, not {kept}; impl='triton_columns' takes any "
            "number"
        )
    return None


def _columns_unsupported_reason(signature: Signature) -> str | None:
    _, seq_len, dim = signature.static_shape()
    return _kernels_unsupported_reason(signature) or plan.size_unsupported_reason(seq_len, dim)


def _modes_in_use(signature: Signature) -> int:
    _, seq_len, dim = signature.static_shape()
    return min(signature.options.get("modes", max(1, dim // 2)), seq_len // 2 + 1)


def _ragged_unsupported_reason(signature: Signature) -> str | None:
    _, seq_len, dim = signature.static_shape()
    if seq_len * dim >= MOST_OFFSET:
        return f"takes N * D below {MOST_OFFSET}, not {seq_len * dim}"
    return _kernels_unsupported_reason(signature)


def _products_too_large(signature: Signature) -> str | None:
    # Of packed tokens only their number may be known, which says little of the longest sequence.
    kept = 0 if signature.options.get("packed") else _modes_in_use(signature)
    if kept > LONGEST_BY_PRODUCTS // 2:
        return f"takes N M D operations, too many for {kept:,} modes"
    return None


def _one_call_a_length(signature: Signature) -> str | None:
    return None if signature.options.get("causal") else one_call_a_length(signature)


def _describe_columns_plan(signature: Signature) -> str:
    seq_len = signature.static_shape()[1]
    if signature.options.get("masked"):
        return "each true length by its own digits"
    cut = plan.digits(seq_len)
    longer = plan.longer(2 * seq_len - 1)
    return str(cut) if cut else f"N = {seq_len} is odd or has a large factor: within {longer}"


OPERATOR = Operator(
    name="spectral",
    axes="B, N, D",
    implementations=[
        cpu_implementation(
            _cpu,
            "native transform, filter and back in cache; saves only the input",
            unsupported_reason=_cpu_unsupported_reason,
            packed=_cpu_packed,
        ),
        Implementation(
            name="torch",
            run=_then_bias(torch_impl.filter_tokens),
            summary="real FFT, filter, inverse, with a backward that saves only the input",
            launches=8,
            deprioritized_reason=_one_call_a_length,
        ),
        triton_implementation(
            _triton,
            "skinny tensor-core products, one read and one write; saves only the input",
            unsupported_reason=_triton_unsupported_reason,
            shared_memory={2: 116 << 10, 4: 176 << 10},
            launches=3,
            scales_with="modes",
            deprioritized_reason=one_call_a_length,
        ),
        triton_implementation(
            _triton_columns,
            "whole transforms in tensor-core passes, any modes; saves only the input",
            name="triton_columns",
            launches=3,
            shared_memory={2: 128 << 10, 4: 64 << 10},
            unsupported_reason=_columns_unsupported_reason,
            describe_plan=_describe_columns_plan,
            deprioritized_reason=one_call_a_length,
        ),
        triton_implementation(
            _triton_ragged,
            "real products with matrices made on the fly, any mixture of lengths; saves only the "
            "input",
            name="triton_ragged",
            launches=2,
            packed=_triton_packed,
            shared_memory={2: 112 << 10, 4: 64 << 10},
            unsupported_reason=_ragged_unsupported_reason,
            deprioritized_reason=_products_too_large,
            scales_with="modes",
        ),
        Implementation(
            name="reference",
            run=_then_bias(reference.filter_tokens),
            summary="irfft(W * rfft(x)), the formula",
            deprioritized_reason=one_call_a_length,
        ),
    ],
)


def spectral(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    causal: bool = False,
    context: int | None = None,
    unitary: bool = False,
    impl: str = "auto",
) -> Tensor:
    """A learnable filter over the lowest M modes of each channel: irfft(W * rfft(x)) + b.

    The transform runs along tokens, over each sequence's own true length n; one W serves any
    length (Rao et al. 2021, Global Filter Networks, eq. 4, with a filter cut to its lowest modes).
    Modes from M up are dropped; where n // 2 + 1 < M the modes that exist are used. DC and Nyquist
    of a real signal are real, so there only the real part of W counts.

    Args:
        x: [B, N, D], floating. Half types are transformed in float32 and rounded once.
        weight: W, complex [M, D], or its real and imaginary parts as a real [M, D, 2].
        bias: b, real [D], or None.
        mask: bool [B, N], True = a real token. Outputs at padding are zero.
        cu_seqlens: int32 [S + 1] on the same device, rising from 0 to T, where the tokens of S
            sequences are packed, [T, D]: sequence s is cu_seqlens[s] to cu_seqlens[s + 1].
            Excludes ``mask``. On a GPU the values are not checked, which the host would wait for.
        max_seqlen: with ``cu_seqlens``, tokens of the longest sequence or a bound of it. On a GPU
            it saves work, or for implementations that pad a wait of the host.
        causal: convolve instead with the impulse response h = irfft(W, n=context) and zeros before
            the start, y[t] = sum of h[s] x[t - s] over s < context, so that no output depends on
            later tokens nor on how many follow.
        context: taps of the causal filter, >= 1; 2 M - 1 when None.
        unitary: pass the modes from M up unchanged and leave DC and Nyquist alone, so that factors
            W of modulus one keep the energy (Parseval). Excludes ``causal``.
        impl: "auto", "cpu" (not causal), "torch", "triton" (up to 512 modes, not causal),
            "triton_columns" (any modes, not causal), "triton_ragged" (any modes and lengths in
            one go, not causal) or "reference".

    Returns:
        [B, N, D], or packed [T, D], in the dtype of ``x``.

    Raises:
        ArgumentError: an argument has the wrong shape, dtype or value.
        ImplementationError: ``impl`` cannot run here.
    """
    packed = cu_seqlens is not None or max_seqlen is not None
    if packed:
        _checks.check_floating("spectral", "x", x, "T, D")
    else:
        _checks.check_tokens("spectral", x, mask)
    for name, flag in (("causal", causal), ("unitary", unitary)):
        _checks.check_flag("spectral", name, flag)
    if isinstance(weight, Tensor) and weight.is_complex():
        _checks.check_dense("spectral", "weight", weight)
        if weight.dim() != 2:
            raise ArgumentError(
                f"spectral: a complex weight must be [M, D], got {list(weight.shape)}; the real "
                "and imaginary parts of W are a real [M, D, 2]"
            )
        weight = torch.view_as_real(weight.resolve_conj())
    _checks.check_floating("spectral", "weight", weight, "M, D, 2")
    if weight.shape[1:] != (x.shape[-1], 2) or weight.shape[0] < 1:
        raise ArgumentError(
            f"spectral: weight must be [M, D, 2] = [M, {x.shape[-1]}, 2] (or complex [M, D]) with "
            f"M >= 1, got {list(weight.shape)}"
        )
    _checks.check_device("spectral", "weight", weight, x)
    if bias is not None:
        _checks.check_floating("spectral", "bias", bias, "D")
        if bias.shape != x.shape[-1:]:
            raise ArgumentError(
                f"spectral: bias must be [D] = [{x.shape[-1]}], got {list(bias.shape)}"
            )
        _checks.check_device("spectral", "bias", bias, x)
    if context is not None:
        _checks.check_count("spectral", "context", context)
        if not causal:
            raise ArgumentError(
                "spectral: context is the length of a causal filter; set causal=True"
            )
    if causal and unitary:
        raise ArgumentError(
            "spectral: causal and unitary exclude each other: a causal filter of finite context "
            "cannot keep the energy"
        )
    taps = (context or 2 * weight.shape[0] - 1) if causal else None
    compute = transform_dtype(x.dtype, weight.dtype)
    options = {
        "masked": mask is not None,
        "causal": causal,
        "modes": weight.shape[0],
        "double_weight": weight.dtype == torch.float64,
    }
    if packed:
        return _packed.run_packed(
            OPERATOR,
            impl,
            *_packed.check_offsets("spectral", mask, cu_seqlens, max_seqlen, x),
            (x,),
            parameters=(weight.to(compute), bias),
            rest=(unitary, taps),
            options=options,
        )
    direction = direction_of(x, weight, bias)
    signature = Signature(tuple(x.shape), x.dtype, x.device, options, direction)
    run: Run = OPERATOR.select(impl, signature).implementation.run
    return run(x, weight.to(compute), bias, mask, unitary, taps)

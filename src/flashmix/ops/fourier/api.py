"""Public Fourier attention op: validation and dispatch."""

from __future__ import annotations

from torch import Tensor

from flashmix.ops import _checks, _packed
from flashmix.ops._library import direction_of
from flashmix.ops._triton.availability import too_wide
from flashmix.ops.dispatch import Implementation, Operator, Signature
from flashmix.ops.dispatch.families import (
    LONGEST_BY_PRODUCTS,
    cpu_implementation,
    one_call_a_length,
    triton_implementation,
)
from flashmix.ops.fourier import cpu, reference, torch_impl


def _triton_ragged(v: Tensor, mask: Tensor | None) -> Tensor:
    from flashmix.ops.fourier.triton.ragged import fourier

    return fourier(v, mask)


def _triton_packed(v: Tensor, cu_seqlens: Tensor, max_seqlen: int | None) -> Tensor:
    from flashmix.ops.fourier.triton.ragged import packed

    y: Tensor = packed(v, cu_seqlens)
    return y


def _products_too_long(signature: Signature) -> str | None:
    # Of packed tokens only their number may be known, which says little of the longest sequence.
    if signature.shape[2] > LONGEST_BY_PRODUCTS and not signature.options.get("packed"):
        return f"takes N^2 dh operations, too many above {LONGEST_BY_PRODUCTS:,} tokens"
    return None


OPERATOR = Operator(
    name="fourier",
    axes="B, H, N, dh",
    implementations=[
        cpu_implementation(
            cpu.fourier,
            "native transform, weigh, inverse; saves only the input",
            packed=cpu.packed,
        ),
        Implementation(
            name="torch",
            run=torch_impl.fourier,
            summary="real FFT, weigh, inverse, with a backward that saves only the input",
            deprioritized_reason=one_call_a_length,
        ),
        triton_implementation(
            _triton_ragged,
            "real products with matrices made on the fly, any mixture of lengths; saves only the "
            "input",
            name="triton_ragged",
            launches=2,
            packed=_triton_packed,
            shared_memory={2: 96 << 10, 4: 192 << 10},
            unsupported_reason=too_wide,
            deprioritized_reason=_products_too_long,
        ),
        Implementation(
            name="reference",
            run=reference.fourier,
            summary="the formula",
            deprioritized_reason=one_call_a_length,
        ),
    ],
)


def fourier(
    v: Tensor,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """Fourier attention: each frequency of a head weighed by its share of the head's power.

    V = rfft(v over tokens); weights = softmax over frequencies of log(power + 1e-6), power
    averaged over the head's channels; y = irfft(V * weights * number of frequencies), so that
    white input keeps its scale. O(N log N), and dependent on the data.

    Args:
        v: [B, H, N, dh], floating. Half types are transformed in float32 and rounded once.
        mask: bool [B, N], True = a real token. Each sequence is transformed over its own true
            length; outputs at padding are zero.
        cu_seqlens: int32 [S + 1] on the same device, rising from 0 to T, where the tokens of S
            sequences are packed, [T, H, dh]: sequence s is cu_seqlens[s] to cu_seqlens[s + 1].
            Excludes ``mask``. On a GPU the values are not checked, which the host would wait for.
        max_seqlen: with ``cu_seqlens``, tokens of the longest sequence or a bound of it. On a GPU
            it saves work, or for implementations that pad a wait of the host.
        impl: "auto", "cpu" (native kernels), "torch", "triton_ragged" (heads up to 256 wide; any
            mixture of lengths in one go) or "reference".

    Returns:
        [B, H, N, dh], or packed [T, H, dh], in the dtype of ``v``.

    Raises:
        ArgumentError: an argument has the wrong shape, dtype or value.
        ImplementationError: ``impl`` cannot run here.
    """
    if cu_seqlens is not None or max_seqlen is not None:
        _checks.check_floating("fourier", "v", v, "T, H, dh")
        sequences = _packed.check_offsets("fourier", mask, cu_seqlens, max_seqlen, v)
        return _packed.run_packed(OPERATOR, impl, *sequences, (v,))
    _checks.check_floating("fourier", "v", v, "B, H, N, dh")
    _checks.check_mask("fourier", mask, v, v.shape[2])
    options = {"masked": mask is not None}
    signature = Signature(tuple(v.shape), v.dtype, v.device, options, direction_of(v))
    y: Tensor = OPERATOR.select(impl, signature).implementation.run(v, mask)
    return y


def fourier_weights(v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The weights of :func:`fourier`: [B, H, N // 2 + 1], summing to one over the frequencies.

    A padded sequence of n real tokens has n // 2 + 1 frequencies; the entries beyond are zero.
    """
    _checks.check_floating("fourier_weights", "v", v, "B, H, N, dh")
    _checks.check_mask("fourier_weights", mask, v, v.shape[2])
    return reference.fourier_weights(v, mask)

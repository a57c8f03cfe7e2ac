"""The truncated spectral filter as skinny products on tensor cores.

The backward saves the input and the filter, and no spectrum. Shapes: B batch, N tokens, D
channels, M learned modes.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length
from flashmix.ops._triton.launch import by_batches
from flashmix.ops.spectral.plan import Plan, plan
from flashmix.ops.spectral.registration import register
from flashmix.ops.spectral.triton import launch
from flashmix.ops.spectral.triton.sums import Sums


def _plan(seq_len: int, modes: int) -> Plan:
    found = plan(seq_len, modes)
    if found is None:
        raise AssertionError("the dispatcher refuses filters of so many modes")
    return found


@kernel_op("spectral_triton", unbatched=("weight", "bias"))
def spectral(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, unitary: bool
) -> Tensor:
    """irfft(W * rfft(x)) + b of each sequence over its own true length, [B, N, D].

    Args:
        x: [B, N, D].
        weight: real and imaginary parts, float32 [M, D, 2].
        bias: [D] or None.
        mask: bool [B, N] or None.
        unitary: pass the modes from M up and leave DC and Nyquist alone.
    """
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()

    def run(x: Tensor) -> Tensor:
        p = _plan(x.shape[1], weight.shape[0])
        how = launch.config(p, x.shape[2], x.dtype)
        filtered = launch.filtered_modes(x, weight, p, how, unitary)
        return launch.synthesis(filtered, x, bias, p, unitary, how)

    return each_length(partial(by_batches, run), mask, x)


@kernel_op("spectral_triton_backward", sums=True)
def spectral_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to ``x``, ``weight`` and a bias (float32 [D])."""
    weight = weight.contiguous()
    sums = Sums()

    def run(grad: Tensor, x: Tensor) -> Tensor:
        p = _plan(x.shape[1], weight.shape[0])
        how = launch.config(p, x.shape[2], x.dtype)
        upstream = launch.analysis(grad, p, how)
        filtered = launch.conjugate_filtered(upstream, weight, p, x.dtype, unitary)
        spectrum = launch.analysis(x, p, how)
        sums.add(*launch.filter_gradients(spectrum, upstream, weight, p, x.dtype, unitary))
        return launch.synthesis(filtered, grad, None, p, unitary, how)

    return each_length(partial(by_batches, run), mask, grad, x), *sums.of(weight)


register(spectral, spectral_backward)

"""The filter over any number of modes by whole transforms along tokens, on tensor cores.

Lengths that have digits are transformed as they are; others, odd and prime ones among them, as
part of a longer circle (``embedded_filter``). The backward saves the input and the filter, and no
spectrum. Shapes: B batch, N tokens, D channels, M learned modes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length
from flashmix.ops._triton.columns import launch
from flashmix.ops._triton.columns.plan import Digits, longer
from flashmix.ops._triton.launch import by_batches
from flashmix.ops.spectral.circulant_embedding import embedded_filter, lengthened_grad
from flashmix.ops.spectral.registration import register
from flashmix.ops.spectral.triton.sums import Sums


def _cut(seq_len: int, dim: int, dtype: torch.dtype) -> tuple[Digits, launch.Config | None]:
    found, how = launch.tuned(seq_len, dim, dtype)
    found = found or longer(2 * seq_len - 1)
    if found is None:
        raise AssertionError("the dispatcher refuses such lengths")
    return found, how


@kernel_op("spectral_triton_columns", unbatched=("weight", "bias"))
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
        n = x.shape[1]
        cut, how = _cut(n, x.shape[2], x.dtype)
        if cut.seq_len == n:
            return launch.filtered(x, weight, bias, cut, unitary=unitary, how=how)
        return launch.filtered(x, embedded_filter(weight, n, cut.seq_len, unitary), bias, cut)

    return each_length(partial(by_batches, run), mask, x)


@kernel_op("spectral_triton_columns_backward", sums=True)
def spectral_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to ``x``, ``weight`` and a bias (float32 [D])."""
    weight = weight.contiguous()
    sums = Sums()

    def run(grad: Tensor, x: Tensor) -> Tensor:
        n = x.shape[1]
        cut, how = _cut(n, x.shape[2], x.dtype)
        if cut.seq_len == n:
            grad_x, part, bias = launch.filter_grads(grad, x, weight, cut, unitary=unitary, how=how)
        else:
            longer_weight = embedded_filter(weight, n, cut.seq_len, unitary)
            grad_x, part, bias = launch.filter_grads(grad, x, longer_weight, cut)
            part = lengthened_grad(part, weight, n, unitary)
        sums.add(part, bias)
        return grad_x

    return each_length(partial(by_batches, run), mask, grad, x), *sums.of(weight)


register(spectral, spectral_backward)

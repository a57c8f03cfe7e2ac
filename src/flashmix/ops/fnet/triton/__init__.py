"""FNet mixing on tensor cores, in two passes over memory.

Lengths without a plan, among them odd ones, take the half-spectrum FFT of :mod:`..torch`; so does
each length of a padded batch that has none.
"""

from __future__ import annotations

from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length
from flashmix.ops._triton.launch import by_batches
from flashmix.ops.fnet import torch_impl as fft
from flashmix.ops.fnet.plan import plan
from flashmix.ops.fnet.registration import register
from flashmix.ops.fnet.triton.launch import mix


def _mix(x: Tensor, norm: str) -> Tensor:
    digits = plan(x.shape[1], x.shape[2], x.dtype)
    if digits is None:
        return fft.fnet(x, None, norm)
    return by_batches(lambda part: mix(part, digits, norm), x)


@kernel_op("fnet_triton")
def fnet(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Re(FFT2(x)) of each sequence over its own true length, [B, N, D]."""
    return each_length(lambda part: _mix(part, norm), mask, x)


register(fnet)

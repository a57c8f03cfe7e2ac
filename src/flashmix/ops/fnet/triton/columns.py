"""FNet mixing column by column as an op; ``passes`` has the transform.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length
from flashmix.ops._triton.launch import by_batches
from flashmix.ops.fnet import torch_impl as fft
from flashmix.ops.fnet.registration import register
from flashmix.ops.fnet.triton.passes import mix, tuned


def _mix(x: Tensor, norm: str) -> Tensor:
    cut, how, columns = tuned(x.shape[1], x.shape[2], x.dtype)
    if cut is None:
        return fft.fnet(x, None, norm)
    return mix(x, cut, norm, how, columns)


@kernel_op("fnet_triton_columns")
def fnet(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Re(FFT2(x)) of each sequence over its own true length, [B, N, D].

    In a padded batch, lengths without digits go through the FFT.
    """
    return each_length(partial(by_batches, partial(_mix, norm=norm)), mask, x)


register(fnet)

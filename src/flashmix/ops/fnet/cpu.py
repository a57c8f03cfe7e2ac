"""FNet mixing in native code: two passes over memory, whatever lengths the sequences have.

FNet is its own adjoint: its backward is itself, and saves no activation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._cpu.heads import packed_shape_of, shape_of
from flashmix.ops._cpu.library import DATA, FLAG, SHAPE, Kernel, Shape
from flashmix.ops._library import kernel_op
from flashmix.ops._precision import transform_dtype
from flashmix.ops.fnet.registration import register

_transform = Kernel("fnet", SHAPE, FLAG, DATA, DATA)


def _run(x: Tensor, shape: Shape, norm: str) -> Tensor:
    wide = x.to(transform_dtype(x.dtype)).contiguous()
    y = torch.empty(wide.shape, dtype=wide.dtype)
    _transform(y.dtype, shape, norm == "ortho", wide, y)
    return y.to(x.dtype)


@kernel_op("fnet_cpu", key="CPU")
def fnet(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Re(FFT2(x)) of each sequence over its own true length, [B, N, D]."""
    shape, _alive = shape_of(x.shape, mask)
    return _run(x, shape, norm)


def packed(x: Tensor, offsets: Tensor, norm: str) -> Tensor:
    """The same of sequences one after another, [T, D]; ``offsets`` int32 [S + 1] rise to T."""
    return _run(x, packed_shape_of(x.shape, offsets), norm)


register(fnet)

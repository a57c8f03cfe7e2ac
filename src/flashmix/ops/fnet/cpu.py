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
from flashmix.ops.fnet.registration import packed_formula, register

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


@kernel_op("fnet_cpu_packed", key="CPU", sums=True)
def _packed(x: Tensor, cu_seqlens: Tensor, norm: str) -> Tensor:
    shape, _alive = packed_shape_of(x.shape, cu_seqlens)
    return _run(x, shape, norm)


def packed(x: Tensor, cu_seqlens: Tensor, max_seqlen: int | None, norm: str) -> Tensor:
    """The same of packed sequences, [T, D]."""
    y: Tensor = _packed(x, cu_seqlens, norm)
    return y


register(fnet)
register(_packed, packed_formula)

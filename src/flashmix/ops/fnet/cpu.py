"""FNet mixing in native code: two passes over memory.

FNet is its own adjoint: its backward is itself, and saves no activation.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from flashmix.ops._cpu.library import DATA, INT, REAL, Kernel
from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length
from flashmix.ops._precision import transform_dtype
from flashmix.ops.fnet.registration import register

_transform = Kernel("fnet", INT, INT, INT, REAL, DATA, DATA)


def _mix(norm: str, x: Tensor) -> Tensor:
    batch, n, dim = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    scale = (n * dim) ** -0.5 if norm == "ortho" else 1.0
    _transform(x.dtype, batch, n, dim, scale, x.contiguous(), y)
    return y


@kernel_op("fnet_cpu", key="CPU")
def fnet(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Re(FFT2(x)) of each sequence over its own true length, [B, N, D]."""
    wide = x.to(transform_dtype(x.dtype))
    return each_length(partial(_mix, norm), mask, wide).to(x.dtype)


register(fnet)

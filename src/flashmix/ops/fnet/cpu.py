"""FNet mixing in native code: two passes over memory for lengths whose factors are small.

Others go through PyTorch's FFT, and only the mirrored half is native. FNet is its own adjoint: its
backward is itself, and saves no activation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._cpu.library import call
from flashmix.ops._cpu.smooth import smooth
from flashmix.ops._padding import each_length
from flashmix.ops._precision import transform_dtype
from flashmix.ops.fnet.registration import register


def _mix(x: Tensor, norm: str) -> Tensor:
    n, dim = x.shape[1:]
    y = torch.empty(x.shape, dtype=x.dtype)
    if smooth(n) and smooth(dim):
        scale = (n * dim) ** -0.5 if norm == "ortho" else 1.0
        call("fnet", x.dtype, *x.shape, scale, x.contiguous(), y)
    else:
        half = torch.view_as_real(torch.fft.rfft2(x, dim=(1, 2), norm=norm).contiguous())
        call("fnet_mirror", x.dtype, *x.shape, half, y)
    return y


@torch.library.custom_op("flashmix::fnet_cpu", mutates_args=(), device_types="cpu")
def fnet(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Re(FFT2(x)) of each sequence over its own true length, [B, N, D]."""
    wide = x.to(transform_dtype(x.dtype))
    return each_length(lambda part: _mix(part, norm), mask, wide).to(x.dtype)


register(fnet)

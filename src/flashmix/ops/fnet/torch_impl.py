"""FNet mixing from half of the spectrum.

Real input makes Y[k, j] = Y[-k, -j], so the columns j <= D // 2 are enough; the others are their
mirror image. FNet is its own adjoint: its backward is itself, and saves no activation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length
from flashmix.ops._precision import transform_dtype
from flashmix.ops.fnet.registration import register


def _mix(x: Tensor, norm: str) -> Tensor:
    half = torch.fft.rfft2(x, dim=(1, 2), norm=norm).real
    mirrored = half[:, :, 1 : (x.shape[2] + 1) // 2].flip((1, 2)).roll(1, 1)
    return torch.cat((half, mirrored), dim=2)


@kernel_op("fnet_torch", composed=True)
def fnet(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Re(FFT2(x)) of each sequence over its own true length, [B, N, D]."""
    wide = x.to(transform_dtype(x.dtype))
    y = each_length(lambda part: _mix(part, norm), mask, wide)
    return y.to(x.dtype)


register(fnet)

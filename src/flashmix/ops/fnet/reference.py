"""FNet mixing, Re(FFT over tokens of FFT over width), as in Lee-Thorp et al. 2021, equation 3."""

from __future__ import annotations

import torch
from torch import Tensor

from flashmix.ops._padding import each_sequence
from flashmix.ops._precision import transform_dtype


def fnet(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Re(FFT2(x)) of each sequence over its own true length, [B, N, D]."""

    def mix(x: Tensor) -> Tensor:
        return torch.fft.fftn(x, dim=(1, 2), norm=norm).real

    return each_sequence(mix, x.to(transform_dtype(x.dtype)), mask).to(x.dtype)

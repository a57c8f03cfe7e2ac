"""FNet mixing as two matrix products: the fewest steps for short sequences, whatever their length.

With g, the Hartley transform of x's even part over the width, Y is the Hartley transform of g over
tokens; the columns j <= D / 2 are enough and the others their mirror image (Y[-k, -j] = Y[k, j]).
Arithmetic grows with N^2 D + N D^2. The matrices are the only thing kept.

Shapes: B batch, N tokens, D width, G = D // 2 + 1.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length
from flashmix.ops._precision import full_precision
from flashmix.ops._triton.matrices import Matrix, dft, place
from flashmix.ops.fnet.registration import register

MOST = 2048
"""The longest side: beyond it a product reads more matrix than data."""


def _hartley(size: int) -> Tensor:
    """cas(2 pi r c / size) = cos + sin, as the real part; cos - sin as the imaginary one."""
    w = dft(size)
    return torch.complex(w.real - w.imag, w.real + w.imag)


@functools.cache
def _matrices(
    seq_len: int, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Matrix, Matrix]:
    width = _hartley(dim)[:, : dim // 2 + 1]
    return (
        place(width.contiguous(), dtype, device, terms=2 * dim),
        place(_hartley(seq_len), dtype, device, terms=seq_len),
    )


def _mix(x: Tensor, norm: str) -> Tensor:
    """Re(FFT2(x)) of ``x`` [B, N, D]."""
    seq_len, dim = x.shape[1:]
    width, tokens = _matrices(seq_len, dim, x.dtype, x.device)
    with full_precision(x.device):
        # Re z[n] + Im z[n], where z is even in its real and odd in its imaginary part.
        g = x @ width.im + (x @ width.re).flip(1).roll(1, 1)
        half = tokens.re @ g
    scale = 0.5 / (width.gain * tokens.gain)
    if norm == "ortho":
        scale /= math.sqrt(seq_len * dim)
    half *= scale
    mirrored = half[:, :, 1 : (dim + 1) // 2].flip((1, 2)).roll(1, 1)
    return torch.cat((half, mirrored), dim=2)


@kernel_op("fnet_dense", composed=True)
def fnet(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Re(FFT2(x)) of each sequence over its own true length, [B, N, D]."""
    return each_length(lambda part: _mix(part, norm), mask, x)


register(fnet)

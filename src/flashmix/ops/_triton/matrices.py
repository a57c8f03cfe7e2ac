"""DFT matrices and twiddle factors: exact in float64 on the host, then rounded and moved.

A matrix for half-precision products is scaled before it is rounded: by a power of two near
1/sqrt(terms), which keeps sums in range, and by the factor in [1, 2) that loses least to rounding.
Kernels undo the product of the scales once, in float32, on the last accumulator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.ops._launcher.recording import constant

_STEPS = 256
_SAMPLE = 1 << 15


@dataclass(frozen=True)
class Matrix:
    """A complex matrix as two real planes: ``re`` + i ``im`` = ``gain`` times the exact one."""

    re: Tensor
    im: Tensor
    gain: float


def phases(turns: Tensor, period: int) -> Tensor:
    """exp(-2 pi i turns / period), complex128; integer ``turns`` are first reduced exactly."""
    angle = (turns % period).double() * (-2 * math.pi / period)
    return torch.complex(angle.cos(), angle.sin())


def dft(size: int) -> Tensor:
    """The DFT matrix exp(-2 pi i r c / size), complex128 [size, size]."""
    index = torch.arange(size)
    return phases(index[:, None] * index, size)


def real_dft(size: int) -> Tensor:
    """The DFT of ``size`` real numbers (even) as ``size`` / 2 complex rows, complex128.

    Rows k = 0 and k = size / 2 have real results, so they share row 0: the first is its real
    part, the other its imaginary part.
    """
    rows = dft(size)[: size // 2].clone()
    rows[0] = torch.complex(
        torch.ones(size).double(), 1.0 - 2.0 * (torch.arange(size) % 2).double()
    )
    return rows


def _gain(exact: Tensor, dtype: torch.dtype, terms: int | None) -> float:
    if dtype == torch.float32 or terms is None:
        return 1.0
    sample = torch.view_as_real(exact).flatten()
    sample = sample[:: max(1, sample.numel() // _SAMPLE)]
    factors = 1 + torch.arange(_STEPS).double()[:, None] / _STEPS
    scaled = sample * factors
    loss = (scaled.to(dtype).double() - scaled).norm(dim=1) / factors[:, 0]
    return float(factors[loss.argmin()]) * 2.0 ** -round(0.5 * math.log2(terms))


def place(
    exact: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    *,
    terms: int | None = None,
    shape: tuple[int, int] | None = None,
) -> Matrix:
    """Scale, round, pad with zeros and move the complex128 matrix ``exact``.

    Args:
        exact: complex128 [..., R, C].
        dtype: of both planes.
        device: where they go.
        terms: how many terms a product with it sums, which sets the scale; None means no scale.
        shape: at least (R, C); what the planes are padded to.
    """
    gain = _gain(exact, dtype, terms)
    rows, columns = shape or exact.shape[-2:]
    padding = (0, columns - exact.shape[-1], 0, rows - exact.shape[-2])
    re, im = (
        constant(F.pad(plane * gain, padding).to(dtype).contiguous().to(device))
        for plane in (exact.real, exact.imag)
    )
    return Matrix(re, im, gain)

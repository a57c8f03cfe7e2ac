"""Fourier attention of sequences of any lengths in three launches, and its backward in four.

The modes V of a head are two real products over folded tokens. They are stored over the roots of
their powers, in the dtype of v, whose range then does not matter. The other launch sums a head's
powers, so that it has the weights w, and is two real products with the matrix times w.

With U the modes of the output's gradient the backward is y = irfft(F w U + a V), where a comes
from the sums of Re(conj(V) U) over the channels of a head: the same launches over both.

2 L^2 D operations a sequence and launch, half of it in either. Shapes: S sequences, N tokens of
the longest, T packed tokens, H heads, dh width of a head, R folded rows of all sequences.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._triton.folded import fold, row
from flashmix.ops._triton.launch import padded, precision
from flashmix.ops._triton.sequences import Sequences, sequences
from flashmix.ops._triton.tuning import LaunchConfig, launch_config
from flashmix.ops.fourier.reference import EPS
from flashmix.ops.fourier.registration import packed_formula, register
from flashmix.ops.fourier.triton.kernels_ragged import analysis_kernel, synthesis_kernel

# Modes whose weights are summed at a time.
_GAINS = 256


@dataclass(frozen=True, kw_only=True)
class Config(LaunchConfig):
    """Tiles and warps of a program of each launch.

    They depend on the width of a head and dtype alone: a sequence has the same bits whatever the
    batch around it. The analysis sums ``analysis_step`` folded tokens at a time into a tile of
    modes, the synthesis ``synthesis_step`` modes into one of ``synthesis_rows`` folded tokens.
    """

    analysis_modes: int = 64
    analysis_step: int = 32
    analysis_warps: int = 4
    analysis_stages: int = 3
    synthesis_rows: int = 64
    synthesis_step: int = 32
    synthesis_warps: int = 4
    synthesis_stages: int = 3

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """Tiles are smaller the more sums a program holds: two of them, or four of the backward."""
        single = dtype == torch.float32
        sums = padded(sizes["head_dim"]) * (2 if sizes["backward"] else 1) * (2 if single else 1)
        warps = 8 if single or sums > 128 else 4
        if sums > 128:
            return cls(
                analysis_modes=32,
                analysis_warps=warps,
                analysis_stages=2,
                synthesis_rows=32 if sums > 256 or single else 64,
                synthesis_warps=warps,
                synthesis_stages=2,
            )
        stages = 2 if single else 3
        return cls(
            analysis_warps=warps,
            analysis_stages=stages,
            synthesis_warps=warps,
            synthesis_stages=stages,
        )


@functools.cache
def config(width: int, dtype: torch.dtype, backward: bool) -> Config:
    """The launch parameters of heads of that width, or of their backward."""
    return launch_config(Config, {"head_dim": width, "backward": backward}, dtype)


def _strides(x: Tensor, where: Sequences) -> tuple[int, ...]:
    return (0, *x.stride()) if where.packed else x.stride()


def _mix(grad: Tensor | None, v: Tensor, where: Sequences, how: Config | None) -> Tensor:
    heads, width = v.shape[-2:]
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if not v.numel():
        return y
    how = how or config(width, v.dtype, grad is not None)
    count = where.folded_rows()
    spectrum = v.new_empty((2 if grad is None else 4, count, heads, width))
    rows = v.new_empty((1 if grad is None else 3, heads, count), dtype=torch.float32)
    tensors = where.order, where.lengths, where.offsets, where.count, where.longest
    analysis_kernel[(where.programs(2 * how.analysis_modes) * heads,)](
        fold(v.flatten(-2), where),
        None if grad is None else fold(grad.flatten(-2), where),
        spectrum,
        rows,
        *tensors[1:],
        count,
        EPS,
        H=heads,
        DH=width,
        W=row(heads * width),
        MODES=how.analysis_modes,
        COLUMNS=padded(width),
        STEP=how.analysis_step,
        EXACT=v.dtype == torch.float32,
        PRECISION=precision(v.dtype),
        num_warps=how.analysis_warps,
        num_stages=how.analysis_stages,
    )
    synthesis_kernel[(where.programs(2 * how.synthesis_rows) * heads,)](
        spectrum,
        rows,
        y,
        *tensors,
        *_strides(y, where)[:3],
        count,
        H=heads,
        DH=width,
        ROWS=how.synthesis_rows,
        COLUMNS=padded(width),
        STEP=how.synthesis_step,
        GAINS=_GAINS,
        BACKWARD=grad is not None,
        EXACT=v.dtype == torch.float32,
        PRECISION=precision(v.dtype),
        num_warps=how.synthesis_warps,
        num_stages=how.synthesis_stages,
    )
    return y


def mix(v: Tensor, where: Sequences, how: Config | None = None) -> Tensor:
    """Fourier attention of each sequence of ``v`` over its own length; zeros at padding.

    Args:
        v: [S, N, H, dh], or packed [T, H, dh].
        where: its sequences.
        how: tiles.

    Returns:
        As ``v``, contiguous.
    """
    return _mix(None, v, where, how)


def gradient(grad: Tensor, v: Tensor, where: Sequences, how: Config | None = None) -> Tensor:
    """The gradient of v from that of :func:`mix`; as ``v``, contiguous."""
    return _mix(grad, v, where, how)


@kernel_op("fourier_triton_ragged")
def _op(v: Tensor, mask: Tensor | None) -> Tensor:
    return mix(v, sequences(v, mask, None))


@kernel_op("fourier_triton_ragged_backward")
def _backward_op(grad: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return gradient(grad, v, sequences(v, mask, None))


@kernel_op("fourier_triton_packed", sums=True)
def packed(v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Fourier attention of packed sequences, [T, H, dh]."""
    return mix(v, sequences(v, None, cu_seqlens))


@kernel_op("fourier_triton_packed_backward", sums=True)
def _packed_backward(grad: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    return gradient(grad, v, sequences(v, None, cu_seqlens))


register(_op, _backward_op)
register(packed, _packed_backward, packed_formula)


def fourier(v: Tensor, mask: Tensor | None) -> Tensor:
    """Fourier attention of each sequence over its own true length, [B, H, N, dh]."""
    y: Tensor = _op(v.transpose(1, 2), mask)
    return y.transpose(1, 2)

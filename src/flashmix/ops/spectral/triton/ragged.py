"""The spectral filter of sequences of any lengths in three launches, and its backward in five.

F[m] = sum over n of x[n] exp(-2 pi i m n / L) of the modes in use, m < min(M, L // 2 + 1), is two
real products over folded tokens n <= L / 2. Filtered, G = c W F / L with c = 1 for the modes that
are their own mirror images (0 and L / 2) and 2 for the others, they give the tokens
y[+-n] = cos Re G -+ sin Im G: two real products again. The matrices are made in the kernels, so a
length needs no plan and no table.

The backward is the same of the output's gradient, with the conjugate of W. The gradient of W is
the sum over sequences of (c / L) conj(F) G, with G the modes of the output's gradient; parts of a
sequence are kept in float32 and summed in the order of sequences.

2 L M D operations a sequence and launch. Shapes: S sequences, N tokens of the longest, T packed
tokens, D channels, M learned modes; spectra [2, R, D], R the modes of all sequences.
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
from flashmix.ops._triton.launch import cdiv, padded, precision
from flashmix.ops._triton.sequences import Sequences, sequences
from flashmix.ops._triton.tuning import LaunchConfig, launch_config
from flashmix.ops.spectral.registration import packed_formula, register
from flashmix.ops.spectral.triton.kernels_ragged import (
    analysis_kernel,
    synthesis_kernel,
    weight_grad_kernel,
)

# Sides of a tile of the gradient of W, and the sequences that one program sums.
_GRAD_MODES, _GRAD_COLUMNS, _GROUP = 4, 64, 64


@dataclass(frozen=True, kw_only=True)
class Config(LaunchConfig):
    """Tiles and warps of a program of each launch.

    They depend on width, dtype and M alone: a sequence has the same bits whatever the batch around
    it. The analysis sums ``analysis_step`` folded tokens at a time into a tile of modes, the
    synthesis ``synthesis_step`` modes into one of ``synthesis_rows`` folded tokens.
    """

    analysis_modes: int = 64
    analysis_columns: int = 64
    analysis_step: int = 32
    analysis_warps: int = 4
    analysis_stages: int = 4
    backward_columns: int = 64
    backward_step: int = 32
    backward_warps: int = 8
    backward_stages: int = 3
    synthesis_rows: int = 64
    synthesis_columns: int = 128
    synthesis_step: int = 32
    synthesis_warps: int = 4
    synthesis_stages: int = 4

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """Float32 products need twice the room and three times the work."""
        few, narrow = padded(sizes["modes"]), padded(sizes["dim"])
        if dtype == torch.float32:
            return cls(
                analysis_modes=min(64, few),
                analysis_columns=min(64, narrow),
                analysis_warps=8,
                analysis_stages=2,
                backward_columns=min(32, narrow),
                backward_stages=2,
                synthesis_columns=min(64, narrow),
                synthesis_step=min(32, few),
                synthesis_warps=8,
                synthesis_stages=2,
            )
        # Of narrow tokens there are few tiles: smaller ones occupy more multiprocessors.
        return cls(
            analysis_modes=min(64, few),
            analysis_columns=min(64, narrow),
            backward_columns=min(64, narrow),
            synthesis_columns=min(128 if sizes["dim"] > 256 else 64, narrow),
            synthesis_step=min(32, few),
        )


@functools.cache
def config(dim: int, modes: int, dtype: torch.dtype) -> Config:
    """The launch parameters of that width and M."""
    return launch_config(Config, {"dim": dim, "modes": modes}, dtype)


@dataclass(frozen=True)
class Modes:
    """Where the modes of all sequences are.

    Attributes:
        rows: R.
        each: rows of a sequence; None where it has L // 2 + 1, however long it is.
        tiles: see :meth:`Modes.programs`.
    """

    rows: int
    each: int | None
    where: Sequences

    def programs(self, modes: int) -> int:
        """Programs that hold all tiles of ``modes`` modes."""
        if self.each is None:
            return self.where.programs(2 * modes)
        return self.where.count * cdiv(self.each, modes)


def modes_of(where: Sequences, modes: int) -> Modes:
    """Where the lowest ``modes`` modes are: packed tokens take whichever layout is smaller."""
    each = min(modes, where.longest // 2 + 1)
    rows, folded = where.count * each, where.folded_rows()
    return Modes(folded, None, where) if folded < rows else Modes(rows, each, where)


def _strides(x: Tensor, where: Sequences) -> tuple[int, ...]:
    return (0, *x.stride()) if where.packed else x.stride()


def analysis(
    x: Tensor,
    grad: Tensor | None,
    weight: Tensor,
    where: Sequences,
    unitary: bool,
    how: Config,
) -> tuple[Tensor, Tensor | None]:
    """The filtered modes [2, R, D] of x; or those of ``grad``, and the gradients of W, float32."""
    dim, m = x.shape[-1], modes_of(where, weight.shape[0])
    spectrum = x.new_empty((2, m.rows, dim))
    tokens = fold(x, where)
    upstream = None if grad is None else fold(grad, where)
    products = None if grad is None else weight.new_empty((2, m.rows, dim))
    columns = how.analysis_columns if grad is None else how.backward_columns
    analysis_kernel[(m.programs(how.analysis_modes) * cdiv(dim, columns),)](
        tokens,
        upstream,
        weight,
        spectrum,
        products,
        where.lengths,
        where.offsets,
        where.count,
        where.longest,
        m.each,
        weight.shape[0],
        tokens.shape[1],
        m.rows,
        D=dim,
        W=row(dim),
        MODES=how.analysis_modes,
        COLUMNS=columns,
        STEP=how.analysis_step if grad is None else how.backward_step,
        UNITARY=unitary,
        EXACT=x.dtype == torch.float32,
        PRECISION=precision(x.dtype),
        num_warps=how.analysis_warps if grad is None else how.backward_warps,
        num_stages=how.analysis_stages if grad is None else how.backward_stages,
    )
    return spectrum, products


def synthesis(
    spectrum: Tensor,
    modes: int,
    x: Tensor,
    bias: Tensor | None,
    where: Sequences,
    unitary: bool,
    how: Config,
) -> Tensor:
    """The tokens of filtered modes, as ``x``; plus ``bias``, and plus ``x`` when ``unitary``."""
    dim, m = x.shape[-1], modes_of(where, modes)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    synthesis_kernel[(where.programs(2 * how.synthesis_rows) * cdiv(dim, how.synthesis_columns),)](
        spectrum,
        bias,
        x if unitary else None,
        y,
        where.order,
        where.lengths,
        where.offsets,
        where.count,
        where.longest,
        m.each,
        modes,
        *_strides(x, where),
        *_strides(y, where)[:2],
        m.rows,
        D=dim,
        ROWS=how.synthesis_rows,
        COLUMNS=how.synthesis_columns,
        STEP=how.synthesis_step,
        EXACT=x.dtype == torch.float32,
        PRECISION=precision(x.dtype),
        num_warps=how.synthesis_warps,
        num_stages=how.synthesis_stages,
    )
    return y


def weight_grad(products: Tensor, weight: Tensor, where: Sequences) -> tuple[Tensor, Tensor]:
    """The gradients of W, [M, D, 2], and of a bias, [D], float32."""
    modes, dim = weight.shape[:2]
    m, groups = modes_of(where, modes), cdiv(where.count, _GROUP)
    grad_weight = weight.new_empty((groups, modes, dim, 2))
    grad_bias = weight.new_empty((groups, dim))
    weight_grad_kernel[(cdiv(modes, _GRAD_MODES) * cdiv(dim, _GRAD_COLUMNS), groups)](
        products,
        grad_weight,
        grad_bias,
        where.offsets,
        where.count,
        where.longest,
        m.each,
        modes,
        m.rows,
        _GROUP,
        D=dim,
        MODES=_GRAD_MODES,
        COLUMNS=_GRAD_COLUMNS,
    )
    if groups == 1:
        return grad_weight[0], grad_bias[0]
    return grad_weight.sum(0), grad_bias.sum(0)


def filtered(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    where: Sequences,
    unitary: bool,
    how: Config | None = None,
) -> Tensor:
    """irfft(W * rfft(x)) + b of each sequence of ``x`` over its own length; zeros at padding.

    Args:
        x: [S, N, D], or packed [T, D].
        weight: real and imaginary parts, float32 [M, D, 2], contiguous.
        bias: [D], contiguous, or None.
        where: the sequences of ``x``.
        unitary: pass the modes from M up and leave DC and Nyquist alone.
        how: tiles.

    Returns:
        As ``x``, contiguous.
    """
    if not x.numel():
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    how = how or config(x.shape[-1], weight.shape[0], x.dtype)
    spectrum, _ = analysis(x, None, weight, where, unitary, how)
    return synthesis(spectrum, weight.shape[0], x, bias, where, unitary, how)


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    where: Sequences,
    unitary: bool,
    how: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of W and, float32 [D], of a bias; arguments as of :func:`filtered`."""
    if not x.numel():
        zeros = weight.new_zeros(weight.shape)
        return torch.empty(x.shape, dtype=x.dtype, device=x.device), zeros, zeros[0, :, 0].clone()
    how = how or config(x.shape[-1], weight.shape[0], x.dtype)
    spectrum, products = analysis(x, grad, weight, where, unitary, how)
    assert products is not None
    grad_x = synthesis(spectrum, weight.shape[0], grad, None, where, unitary, how)
    return grad_x, *weight_grad(products, weight, where)


@kernel_op("spectral_triton_ragged", unbatched=("weight", "bias"))
def spectral(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, unitary: bool
) -> Tensor:
    """irfft(W * rfft(x)) + b of each sequence over its own true length, [B, N, D].

    Args:
        x: [B, N, D].
        weight: real and imaginary parts, float32 [M, D, 2].
        bias: [D] or None.
        mask: bool [B, N] or None.
        unitary: pass the modes from M up and leave DC and Nyquist alone.
    """
    bias = None if bias is None else bias.contiguous()
    return filtered(x, weight.contiguous(), bias, sequences(x, mask, None), unitary)


@kernel_op("spectral_triton_ragged_backward", sums=True)
def spectral_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to ``x``, ``weight`` and a bias (float32 [D])."""
    return gradients(grad, x, weight.contiguous(), sequences(x, mask, None), unitary)


@kernel_op("spectral_triton_packed", unbatched=("weight", "bias"), sums=True)
def packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, unitary: bool
) -> Tensor:
    """The filter of packed sequences, [T, D]."""
    bias = None if bias is None else bias.contiguous()
    return filtered(x, weight.contiguous(), bias, sequences(x, None, cu_seqlens), unitary)


@kernel_op("spectral_triton_packed_backward", sums=True)
def _packed_backward(
    grad: Tensor, x: Tensor, weight: Tensor, cu_seqlens: Tensor, unitary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return gradients(grad, x, weight.contiguous(), sequences(x, None, cu_seqlens), unitary)


register(spectral, spectral_backward)
register(packed, _packed_backward, packed_formula)

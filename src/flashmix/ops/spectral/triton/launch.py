"""Launching the kernels of the truncated filter for one length.

Shapes: B batch, N tokens, D channels, M learned modes; spectra as in ``kernels``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flashmix.ops._triton import tuning
from flashmix.ops._triton.launch import cdiv, padded, precision, processors
from flashmix.ops.spectral.plan import Plan, matrix
from flashmix.ops.spectral.triton.kernels import (
    analysis_kernel,
    filter_kernel,
    synthesis_kernel,
    weight_grad_kernel,
)

_FILTER_MODES = 16
_FILTER_CHANNELS = 64


def _boost(seq_len: int) -> float:
    """Lifts filtered modes, which shrink like 1/sqrt(N), off float16's smallest numbers."""
    return 2.0 ** round(math.log2(seq_len) / 4)


def _parts(programs: int, steps: int, how: Config, device: torch.device) -> int:
    """Parts of the sum over tokens: one, unless that left processors without work."""
    if programs >= processors(device):
        return 1
    return max(1, min(how.analysis_programs * processors(device) // programs, steps // 2))


def _scale(plan: Plan, gain: float) -> float:
    return _boost(plan.seq_len) / (gain * gain * plan.seq_len)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sides of a tile, warps of a program and depth of its pipeline, for both products."""

    analysis_l: int = 32
    analysis_d: int = 64
    analysis_warps: int = 4
    analysis_stages: int = 3
    analysis_programs: int = 2
    analysis_registers: int | None = None
    synthesis_l: int = 32
    synthesis_d: int = 64
    synthesis_warps: int = 4
    synthesis_stages: int = 3
    synthesis_programs: int = 4


@functools.cache
def config(plan: Plan, dim: int, dtype: torch.dtype) -> Config:
    """Tuned for half types; float32 products need twice the room, so their tiles are small."""
    if dtype == torch.float32:
        return Config(analysis_l=16, analysis_stages=2, synthesis_stages=2)
    sizes = {"seq_len": plan.seq_len, "dim": dim, "modes": plan.kept}
    tuned = tuning.nearest("spectral", sizes)
    return Config() if tuned is None else Config(**tuned)


def analysis(x: Tensor, plan: Plan, how: Config) -> Tensor:
    """The lowest modes of ``x`` [B, N, D], float32, in parts to be summed."""
    shape = (_part_count(x, plan, how), *_modes_shape(x, plan))
    spectrum = x.new_empty(shape, dtype=torch.float32)
    _analyse(x, spectrum, None, plan, how, unitary=False)
    return spectrum


def filtered_modes(x: Tensor, weight: Tensor, plan: Plan, how: Config, unitary: bool) -> Tensor:
    """The lowest modes of ``x`` [B, N, D] times W, ready for :func:`synthesis`."""
    if _part_count(x, plan, how) > 1:
        spectrum = analysis(x, plan, how)
        return apply_filter(spectrum, weight, plan, x.dtype, unitary, conjugate=False)
    filtered = x.new_empty(_modes_shape(x, plan))
    _analyse(x, filtered, weight, plan, how, unitary)
    return filtered


def _modes_shape(x: Tensor, plan: Plan) -> tuple[int, ...]:
    return x.shape[0], plan.parities, 2, plan.modes_padded, x.shape[2]


def _analysis_grid(x: Tensor, plan: Plan, how: Config) -> tuple[int, int, int]:
    """Channels of a tile, and how many tiles and blocks of modes there are."""
    d_block = min(how.analysis_d, padded(x.shape[2]))
    return d_block, cdiv(x.shape[2], d_block), plan.modes_padded // plan.block


def _part_length(x: Tensor, plan: Plan, how: Config) -> int:
    """Folded tokens of a part, in whole blocks."""
    _, channels, blocks = _analysis_grid(x, plan, how)
    steps = cdiv(plan.length, how.analysis_l)
    parts = _parts(channels * blocks * x.shape[0], steps, how, x.device)
    return cdiv(steps, parts) * how.analysis_l


def _part_count(x: Tensor, plan: Plan, how: Config) -> int:
    return cdiv(plan.length, _part_length(x, plan, how))


def _analyse(
    x: Tensor, to: Tensor, weight: Tensor | None, plan: Plan, how: Config, unitary: bool
) -> None:
    """Sum the modes of ``x`` into ``to``, filtered where ``weight`` is given."""
    batch, _, dim = x.shape
    basis, gain = matrix(plan, x.dtype, x.device)
    d_block, channels, blocks = _analysis_grid(x, plan, how)
    analysis_kernel[(channels, blocks, batch * _part_count(x, plan, how))](
        x,
        basis,
        to,
        weight,
        _scale(plan, gain),
        *x.stride(),
        batch,
        dim,
        plan.length,
        plan.modes_padded,
        plan.length_padded,
        _part_length(x, plan, how),
        plan.seq_len,
        plan.kept,
        PARITIES=plan.parities,
        FILTER=weight is not None,
        UNITARY=unitary,
        M_BLOCK=plan.block,
        L_BLOCK=how.analysis_l,
        D_BLOCK=d_block,
        PRECISION=precision(x.dtype),
        num_warps=how.analysis_warps,
        maxnreg=how.analysis_registers,
        num_stages=how.analysis_stages,
    )


def apply_filter(
    spectrum: Tensor, weight: Tensor, plan: Plan, dtype: torch.dtype, unitary: bool, conjugate: bool
) -> Tensor:
    """The modes times W or its conjugate, ready for :func:`synthesis`."""
    parts, batch, parities, _, modes, dim = spectrum.shape
    _, gain = matrix(plan, dtype, spectrum.device)
    filtered = spectrum.new_empty(spectrum.shape[1:], dtype=dtype)
    grid = (
        cdiv(dim, _FILTER_CHANNELS),
        cdiv(parities * modes, _FILTER_MODES),
        batch,
    )
    filter_kernel[grid](
        spectrum,
        weight,
        filtered,
        _scale(plan, gain),
        batch,
        dim,
        plan.seq_len,
        modes,
        plan.kept,
        parts,
        PARITIES=parities,
        CONJUGATE=conjugate,
        UNITARY=unitary,
        M_BLOCK=_FILTER_MODES,
        D_BLOCK=_FILTER_CHANNELS,
    )
    return filtered


def synthesis(
    filtered: Tensor,
    x: Tensor,
    bias: Tensor | None,
    plan: Plan,
    unitary: bool,
    how: Config,
) -> Tensor:
    """The signal [B, N, D] of filtered modes, plus ``bias``, plus ``x`` when ``unitary``."""
    batch, seq_len, dim = x.shape
    basis, _ = matrix(plan, x.dtype, x.device)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    l_block = min(how.synthesis_l, padded(plan.length))
    d_block = min(how.synthesis_d, padded(dim))
    channels, steps = cdiv(dim, d_block), cdiv(plan.length, l_block)
    blocks = plan.modes_padded // plan.block
    wanted = how.synthesis_programs * processors(x.device)
    chunks = min(steps, cdiv(wanted, channels * batch))
    step = cdiv(steps, chunks) * l_block
    synthesis_kernel[(channels, cdiv(plan.length, step), batch)](
        filtered,
        basis,
        bias,
        x,
        y,
        *x.stride(),
        1 / _boost(seq_len),
        seq_len,
        dim,
        plan.length,
        plan.modes_padded,
        plan.length_padded,
        step,
        PARITIES=plan.parities,
        BLOCKS=blocks,
        HAS_BIAS=bias is not None,
        ADD_X=unitary,
        M_BLOCK=plan.block,
        L_BLOCK=l_block,
        D_BLOCK=d_block,
        PRECISION=precision(x.dtype),
        num_warps=how.synthesis_warps,
        # Prefetching x or further modes too would take more shared memory than there is.
        num_stages=1 if unitary or blocks > 1 else how.synthesis_stages,
    )
    return y


def weight_grad(
    spectrum: Tensor,
    upstream: Tensor,
    weight: Tensor,
    plan: Plan,
    dtype: torch.dtype,
    unitary: bool,
) -> Tensor:
    """The gradient of W from the spectra of the input and of the output's gradient."""
    parts, batch, parities, _, modes, dim = spectrum.shape
    _, gain = matrix(plan, dtype, spectrum.device)
    grad = torch.zeros_like(weight)
    grid = (cdiv(dim, _FILTER_CHANNELS), cdiv(parities * modes, _FILTER_MODES))
    weight_grad_kernel[grid](
        spectrum,
        upstream,
        grad,
        1 / (gain * gain * plan.seq_len),
        batch,
        dim,
        plan.seq_len,
        modes,
        plan.kept,
        PARTS=parts,
        PARITIES=parities,
        UNITARY=unitary,
        M_BLOCK=_FILTER_MODES,
        D_BLOCK=_FILTER_CHANNELS,
    )
    return grad


def bias_grad(upstream: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """The gradient of the bias, which is the mode m = 0 of the output's gradient, float32 [D]."""
    _, gain = matrix(plan, dtype, upstream.device)
    return upstream[:, :, 0, 0, 0].sum((0, 1)) / gain

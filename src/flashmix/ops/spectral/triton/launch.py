"""Launching the kernels of the truncated filter for one length.

Shapes: B batch, N tokens, D channels, M learned modes; spectra as in ``kernels``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flashmix.ops._triton.launch import cdiv, padded, precision, processors, signals
from flashmix.ops._triton.tuning import LaunchConfig, launch_config
from flashmix.ops.spectral.plan import Plan, matrix
from flashmix.ops.spectral.triton.kernels import analysis_kernel, join_kernel, synthesis_kernel
from flashmix.ops.spectral.triton.kernels_modes import filter_kernel, weight_grad_kernel

# Sides of a tile of modes and channels, and the modes of one in the gradient of W.
_MODES = 16
_CHANNELS = 64
_GRAD_MODES = 4
# Partial sums that are read at once.
_AT_ONCE = 4
# Folded tokens of a sum: longer sequences are cut, so that programs can share their sums.
_CHUNK, _LONG, _LONG_CHUNK = 1024, 4096, 2048


def _boost(seq_len: int, dtype: torch.dtype) -> float:
    """Lifts filtered modes, which shrink like 1/sqrt(N), off float16's smallest numbers."""
    return 2.0 ** round(math.log2(seq_len) / 4) if dtype == torch.float16 else 1.0


def _scale(plan: Plan, gain: float, dtype: torch.dtype) -> float:
    return _boost(plan.seq_len, dtype) / (gain * gain * plan.seq_len)


@dataclass(frozen=True, kw_only=True)
class Config(LaunchConfig):
    """Sides of a tile, warps of a program and depth of its pipeline, for both products.

    ``synthesis_programs`` are those that a processor runs at a time.
    """

    op = "spectral"
    sizes = ("seq_len", "dim", "modes")

    analysis_l: int = 32
    analysis_d: int = 64
    analysis_warps: int = 4
    analysis_stages: int = 3
    analysis_registers: int | None = None
    synthesis_l: int = 32
    synthesis_d: int = 64
    synthesis_warps: int = 4
    synthesis_stages: int = 3
    synthesis_programs: int = 2
    synthesis_registers: int | None = None

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """Float32 products need twice the room, so their tiles are small."""
        small = {"analysis_l": 16, "analysis_stages": 2, "synthesis_stages": 2}
        return cls(**small) if dtype == torch.float32 else cls()


@functools.cache
def config(plan: Plan, dim: int, dtype: torch.dtype) -> Config:
    """The launch parameters of a plan."""
    return launch_config(Config, {"seq_len": plan.seq_len, "dim": dim, "modes": plan.kept}, dtype)


def analysis(x: Tensor, plan: Plan, how: Config) -> Tensor:
    """The lowest modes of ``x`` [B, N, D], float32."""
    return _analysed(x, None, plan, how, unitary=False)


def filtered_modes(x: Tensor, weight: Tensor, plan: Plan, how: Config, unitary: bool) -> Tensor:
    """The lowest modes of ``x`` [B, N, D] times W, ready for :func:`synthesis`."""
    return _analysed(x, weight, plan, how, unitary)


def _modes_of_a_tile(plan: Plan, channels: int, wanted: int) -> int:
    """Modes of a tile: few enough for ``wanted`` programs, where there are few sequences.

    ``channels`` counts the blocks of channels and chunks of all sequences. Tiles change no sum, so
    the bits of a sequence do not depend on its batch, nor on the size of the GPU.
    """
    m_block = plan.block
    while channels * (plan.modes_padded // m_block) < wanted and m_block > _MODES:
        m_block //= 2
    return m_block


def _analysed(x: Tensor, weight: Tensor | None, plan: Plan, how: Config, unitary: bool) -> Tensor:
    batch, _, dim = x.shape
    basis, gain = matrix(plan, x.dtype, x.device)
    d_block = min(how.analysis_d, padded(dim))
    channels, steps = cdiv(dim, d_block), cdiv(plan.length, how.analysis_l)
    chunks = cdiv(plan.length, _LONG_CHUNK if plan.length > _LONG else _CHUNK)
    m_block = _modes_of_a_tile(plan, channels * chunks * batch, processors(x.device))
    blocks = plan.modes_padded // m_block
    tiles = channels * blocks * batch
    shape = batch, plan.parities, 2, plan.modes_padded, dim
    spectrum = x.new_empty(shape, dtype=torch.float32 if weight is None else x.dtype)
    size = plan.parities * 2 * m_block * d_block
    sums = x.new_empty((tiles * chunks if chunks > 1 else 0, size), dtype=torch.float32)
    scale, early = _scale(plan, gain, x.dtype), signals(x.device)
    analysis_kernel[(tiles * chunks,)](
        x,
        basis,
        spectrum,
        sums,
        weight,
        scale,
        *x.stride(),
        dim,
        plan.length,
        plan.modes_padded,
        plan.length_padded,
        plan.seq_len,
        plan.kept,
        channels,
        blocks,
        cdiv(steps, chunks),
        CHUNKS=chunks,
        PARITIES=plan.parities,
        FILTER=weight is not None,
        UNITARY=unitary,
        M_BLOCK=m_block,
        L_BLOCK=how.analysis_l,
        D_BLOCK=d_block,
        PRECISION=precision(x.dtype),
        PDL=early,
        num_warps=how.analysis_warps,
        maxnreg=how.analysis_registers,
        num_stages=how.analysis_stages,
    )
    if chunks > 1:
        columns = min(_CHANNELS, d_block)
        grid = tiles, plan.parities * m_block // _MODES, d_block // columns
        join_kernel[grid](
            sums,
            spectrum,
            weight,
            scale,
            dim,
            plan.seq_len,
            plan.modes_padded,
            plan.kept,
            channels,
            blocks,
            chunks,
            PARITIES=plan.parities,
            FILTER=weight is not None,
            UNITARY=unitary,
            M_BLOCK=m_block,
            D_BLOCK=d_block,
            ROWS=_MODES,
            COLUMNS=columns,
            AT_ONCE=_AT_ONCE,
            PDL=early,
            launch_pdl=early,
        )
    return spectrum


def conjugate_filtered(
    spectrum: Tensor, weight: Tensor, plan: Plan, dtype: torch.dtype, unitary: bool
) -> Tensor:
    """The modes times W's conjugate, ready for :func:`synthesis`."""
    batch, parities, _, modes, dim = spectrum.shape
    _, gain = matrix(plan, dtype, spectrum.device)
    filtered = spectrum.new_empty(spectrum.shape, dtype=dtype)
    grid = cdiv(dim, _CHANNELS), cdiv(parities * modes, _MODES), batch
    filter_kernel[grid](
        spectrum,
        weight,
        filtered,
        _scale(plan, gain, dtype),
        dim,
        plan.seq_len,
        modes,
        plan.kept,
        PARITIES=parities,
        UNITARY=unitary,
        M_BLOCK=_MODES,
        D_BLOCK=_CHANNELS,
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
    total = channels * batch * steps
    programs = min(total, how.synthesis_programs * processors(x.device))
    boost, early = _boost(seq_len, x.dtype), signals(x.device)
    synthesis_kernel[(programs,)](
        filtered,
        basis,
        bias,
        x,
        y,
        *x.stride(),
        boost,
        seq_len,
        dim,
        plan.length,
        plan.modes_padded,
        plan.length_padded,
        channels,
        steps,
        *divmod(total, programs),
        PARITIES=plan.parities,
        BLOCKS=blocks,
        HAS_BIAS=bias is not None,
        ADD_X=unitary,
        BOOSTED=boost != 1.0,
        M_BLOCK=plan.block,
        L_BLOCK=l_block,
        D_BLOCK=d_block,
        PRECISION=precision(x.dtype),
        PDL=early,
        num_warps=how.synthesis_warps,
        maxnreg=how.synthesis_registers,
        # Prefetching x or further modes too would take more shared memory than there is.
        num_stages=1 if unitary or blocks > 1 else how.synthesis_stages,
        launch_pdl=early,
    )
    return y


def filter_gradients(
    spectrum: Tensor,
    upstream: Tensor,
    weight: Tensor,
    plan: Plan,
    dtype: torch.dtype,
    unitary: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of W and of a bias from the spectra of the input and the output's gradient.

    That of the bias is the mode m = 0 of the output's gradient, float32 [D].
    """
    batch, parities, _, modes, dim = spectrum.shape
    _, gain = matrix(plan, dtype, spectrum.device)
    make = torch.empty_like if plan.kept == weight.shape[0] else torch.zeros_like
    grad_weight, grad_bias = make(weight), weight.new_empty(dim)
    weight_grad_kernel[(cdiv(dim, _CHANNELS), cdiv(parities * modes, _GRAD_MODES))](
        spectrum,
        upstream,
        grad_weight,
        grad_bias,
        1 / (gain * gain * plan.seq_len),
        1 / gain,
        batch,
        dim,
        plan.seq_len,
        modes,
        plan.kept,
        PARITIES=parities,
        UNITARY=unitary,
        M_BLOCK=_GRAD_MODES,
        D_BLOCK=_CHANNELS,
    )
    return grad_weight, grad_bias

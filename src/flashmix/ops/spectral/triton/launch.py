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
from flashmix.ops._triton.launch import cdiv, padded, precision, processors, signals
from flashmix.ops.spectral.plan import Plan, matrix
from flashmix.ops.spectral.triton.kernels import analysis_kernel, join_kernel, synthesis_kernel
from flashmix.ops.spectral.triton.kernels_modes import filter_kernel, weight_grad_kernel

# Sides of a tile of modes and channels, and the modes of one in the gradient of W.
_MODES = 16
_CHANNELS = 64
_GRAD_MODES = 4
# Pieces that are read at once.
_PIECES = 4
# A program that starts in the middle of a tile takes this many steps at least.
_LEAST_STEPS = 2
# Processors with work in a last round that is left as it is.
_FULL_ENOUGH = 0.9


def _boost(seq_len: int, dtype: torch.dtype) -> float:
    """Lifts filtered modes, which shrink like 1/sqrt(N), off float16's smallest numbers."""
    return 2.0 ** round(math.log2(seq_len) / 4) if dtype == torch.float16 else 1.0


def _scale(plan: Plan, gain: float, dtype: torch.dtype) -> float:
    return _boost(plan.seq_len, dtype) / (gain * gain * plan.seq_len)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sides of a tile, warps of a program and depth of its pipeline, for both products.

    ``programs`` are those that a processor runs at a time.
    """

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
    synthesis_programs: int = 2
    synthesis_registers: int | None = None


@functools.cache
def config(plan: Plan, dim: int, dtype: torch.dtype) -> Config:
    """Tuned for half types; float32 products need twice the room, so their tiles are small."""
    if dtype == torch.float32:
        return Config(analysis_l=16, analysis_stages=2, synthesis_stages=2)
    sizes = {"seq_len": plan.seq_len, "dim": dim, "modes": plan.kept}
    tuned = tuning.nearest("spectral", sizes)
    return Config() if tuned is None else Config(**tuned)


def analysis(x: Tensor, plan: Plan, how: Config) -> Tensor:
    """The lowest modes of ``x`` [B, N, D], float32."""
    return _analysed(x, None, plan, how, unitary=False)


def filtered_modes(x: Tensor, weight: Tensor, plan: Plan, how: Config, unitary: bool) -> Tensor:
    """The lowest modes of ``x`` [B, N, D] times W, ready for :func:`synthesis`."""
    return _analysed(x, weight, plan, how, unitary)


def _divided(tiles: int, steps: int, programs: int) -> tuple[int, int]:
    """Tiles that one program each takes whole, and programs that share the others' steps.

    Whole ones come in rounds that give each of ``programs`` one.
    """
    rest = tiles % programs
    shared = min(programs, rest * (steps // _LEAST_STEPS))
    if shared <= rest or rest > _FULL_ENOUGH * programs:
        return tiles, 0
    return tiles - rest, shared


def _analysed(x: Tensor, weight: Tensor | None, plan: Plan, how: Config, unitary: bool) -> Tensor:
    batch, _, dim = x.shape
    basis, gain = matrix(plan, x.dtype, x.device)
    d_block = min(how.analysis_d, padded(dim))
    channels, blocks = cdiv(dim, d_block), plan.modes_padded // plan.block
    tiles, steps = channels * blocks * batch, cdiv(plan.length, how.analysis_l)
    whole, shared = _divided(tiles, steps, how.analysis_programs * processors(x.device))
    per, extra = divmod((tiles - whole) * steps, max(shared, 1))
    shape = batch, plan.parities, 2, plan.modes_padded, dim
    spectrum = x.new_empty(shape, dtype=torch.float32 if weight is None else x.dtype)
    size = plan.parities * 2 * plan.block * d_block
    pieces = x.new_empty((2 * shared, size), dtype=torch.float32)
    scale, early = _scale(plan, gain, x.dtype), signals(x.device)
    deal = channels, blocks, steps, whole, per, extra
    analysis_kernel[(whole + shared,)](
        x,
        basis,
        spectrum,
        pieces,
        weight,
        scale,
        *x.stride(),
        dim,
        plan.length,
        plan.modes_padded,
        plan.length_padded,
        plan.seq_len,
        plan.kept,
        *deal,
        PARITIES=plan.parities,
        FILTER=weight is not None,
        UNITARY=unitary,
        M_BLOCK=plan.block,
        L_BLOCK=how.analysis_l,
        D_BLOCK=d_block,
        PRECISION=precision(x.dtype),
        PDL=early,
        num_warps=how.analysis_warps,
        maxnreg=how.analysis_registers,
        num_stages=how.analysis_stages,
    )
    if shared:
        columns = min(_CHANNELS, d_block)
        grid = tiles - whole, plan.parities * plan.block // _MODES, d_block // columns
        join_kernel[grid](
            pieces,
            spectrum,
            weight,
            scale,
            dim,
            plan.seq_len,
            plan.modes_padded,
            plan.kept,
            *deal,
            PARITIES=plan.parities,
            FILTER=weight is not None,
            UNITARY=unitary,
            M_BLOCK=plan.block,
            D_BLOCK=d_block,
            ROWS=_MODES,
            COLUMNS=columns,
            AT_ONCE=_PIECES,
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

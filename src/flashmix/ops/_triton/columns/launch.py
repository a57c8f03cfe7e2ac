"""Launching the column transforms for one length.

Shapes: B batch, N tokens, D columns, M modes; planes as in ``kernels``. The workspace of a filter
is one set of planes, that is N1 + 2 rows for each N1 of its input (two sets in the backward).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.ops._triton.columns.kernels import planes_kernel, signal_kernel, stage_kernel
from flashmix.ops._triton.columns.kernels_lines import filter_grad_kernel, filter_kernel
from flashmix.ops._triton.columns.plan import Digits, Matrices, digits, matrices
from flashmix.ops._triton.launch import cdiv, padded, precision, processors
from flashmix.ops._triton.tuning import LaunchConfig, launch_config, nearest


@dataclass(frozen=True, kw_only=True)
class Config(LaunchConfig):
    """Columns of a tile, warps and stages of a program, and programs that a processor is given.

    ``planes`` is the first and the last pass, ``stage`` that of a third digit, ``line`` the one in
    the middle, ``grad`` the same pass of the backward.
    """

    planes_c: int = 64
    planes_warps: int = 4
    planes_programs: int = 8
    planes_stages: int = 2
    stage_c: int = 32
    stage_warps: int = 4
    line_c: int = 32
    line_warps: int = 4
    line_programs: int = 8
    line_stages: int = 2
    grad_c: int = 32
    grad_warps: int = 4
    grad_programs: int = 2
    grad_stages: int = 2
    grad_registers: int | None = None

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """Float32 products need twice the room, and sides of 128 twice the warps."""
        wide = 2 if dtype == torch.float32 else 1
        side_a, side_b = padded(sizes["na"]), padded(sizes["nb"])
        return cls(
            planes_c=64 // wide,
            planes_warps=4 * (wide if sizes["n1"] > 32 else 1),
            stage_c=32 // wide,
            stage_warps=4 if side_a <= 64 else 8,
            line_c=32 // wide,
            line_warps=4 if side_b <= 64 else 8,
            grad_c=32 // wide,
            grad_warps=4 if side_b <= 64 else 8,
        )


@dataclass(frozen=True, kw_only=True)
class FilterConfig(Config):
    """Those of a filter over a whole length."""

    op, section, sizes = "spectral_columns", "columns", ("seq_len", "dim")

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """As the planes' dtype asks."""
        cut = Digits(sizes["n1"], sizes["na"], sizes["nb"])
        return super().fitting(sizes, planes_dtype(cut, dtype))


@functools.cache
def config(cut: Digits, dtype: torch.dtype) -> Config:
    """The launch parameters of a cut, untuned."""
    return launch_config(Config, {"n1": cut.n1, "na": cut.na, "nb": cut.nb}, dtype)


def tuned_config(kind: type[Config], cut: Digits, dim: int, dtype: torch.dtype) -> Config:
    """The launch parameters of a cut, of the ``kind`` of what it is for."""
    sizes = {"seq_len": cut.seq_len, "dim": dim, "n1": cut.n1, "na": cut.na, "nb": cut.nb}
    return launch_config(kind, sizes, dtype)


@functools.cache
def tuned_digits(op: str, seq_len: int, dim: int, dtype: torch.dtype) -> Digits | None:
    """The digits found fastest at that length, in half types; else the usual ones."""
    found = nearest(op, {"seq_len": seq_len, "dim": dim})
    if found is not None and dtype != torch.float32:
        cut = Digits(*found["digits"])
        if cut.seq_len == seq_len:
            return cut
    return digits(seq_len)


@functools.cache
def tuned(seq_len: int, dim: int, dtype: torch.dtype) -> tuple[Digits | None, Config | None]:
    """The digits of a filter's length, and its launch parameters; None where it has none."""
    cut = tuned_digits(FilterConfig.op, seq_len, dim, dtype)
    return cut, None if cut is None else tuned_config(FilterConfig, cut, dim, dtype)


def planes_dtype(cut: Digits, dtype: torch.dtype) -> torch.dtype:
    """What a filter's planes are kept in: a fifth pass would round half types once too often."""
    return torch.float32 if cut.na > 1 else dtype


def tile(most: int, columns: int) -> tuple[int, int]:
    """Columns of a tile, and tiles in a row."""
    c = min(most, padded(columns))
    return c, cdiv(columns, c)


def shares(batch: int, programs: int, wanted: int, device: torch.device) -> tuple[int, int]:
    """Parts of a batch that leave each processor ``wanted`` of the programs; sequences of each."""
    parts = cdiv(wanted * processors(device), programs)
    per = cdiv(batch, min(batch, parts))
    return cdiv(batch, per), per


def _stages(most: int, planes: Tensor, per: int) -> int:
    """One where there is no next sequence, or where matrices of float32 products take the room."""
    return 1 if per == 1 or planes.dtype == torch.float32 else most


@dataclass(frozen=True)
class Fold:
    """Columns of x that are folded with their twins; see ``planes_kernel``."""

    pairs: int
    own: bool


def to_lines(
    x: Tensor, cut: Digits, m: Matrices, how: Config, length: int, fold: Fold | None = None
) -> Tensor:
    """Planes of ``x`` [B, L, D], zero from ``length`` to N, ready for the lines."""
    batch, _, dim = x.shape
    # Rows start at multiples of 16 bytes.
    row = cdiv(dim, 8) * 8
    shape = (2, batch, cut.half + 1, cut.n2, row)
    planes = x.new_empty(shape, dtype=m.analysis.re.dtype)
    c, columns = tile(how.planes_c, dim)
    parts, per = shares(batch, columns * cut.n2, how.planes_programs, x.device)
    planes_kernel[(columns * cut.n2 * parts,)](
        x,
        planes,
        m.analysis.re,
        m.analysis.im,
        m.planes_twiddle.re,
        m.planes_twiddle.im,
        m.last_twiddle.re,
        m.last_twiddle.im,
        planes.stride(0),
        *x.stride(),
        batch,
        per,
        length,
        cut.n2,
        dim,
        row,
        columns,
        fold.pairs if fold else 0,
        int(fold is not None and fold.own),
        N1=cut.n1,
        N1P=padded(cut.n1),
        HP=cut.half_padded,
        C=c,
        FOLD=fold is not None,
        PRECISION=precision(planes.dtype),
        num_warps=how.planes_warps,
        num_stages=_stages(how.planes_stages, planes, per),
    )
    _stage(planes, dim, cut, m, how, inverse=False)
    return planes


def _stage(
    planes: Tensor, dim: int, cut: Digits, m: Matrices, how: Config, *, inverse: bool
) -> None:
    if cut.na == 1:
        return
    c, columns = tile(how.stage_c, dim)
    twiddle = m.twiddle if inverse else m.stage_twiddle
    stage_kernel[(columns * cut.nb * planes.shape[1] * planes.shape[2],)](
        planes,
        m.digit_a.re,
        m.digit_a.im,
        twiddle.re,
        twiddle.im,
        planes.stride(0),
        cut.half + 1,
        dim,
        planes.shape[-1],
        columns,
        NA=cut.na,
        NB=cut.nb,
        NAP=padded(cut.na),
        C=c,
        INVERSE=inverse,
        PRECISION=precision(planes.dtype),
        num_warps=how.stage_warps,
    )


def _from_lines(
    planes: Tensor, like: Tensor, bias: Tensor | None, cut: Digits, m: Matrices, how: Config
) -> Tensor:
    """The signal, shaped as ``like`` [B, L, D], of filtered planes."""
    batch, length, dim = like.shape
    _stage(planes, dim, cut, m, how, inverse=True)
    y = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    c, columns = tile(how.planes_c, dim)
    parts, per = shares(batch, columns * cut.n2, how.planes_programs, like.device)
    signal_kernel[(columns * cut.n2 * parts,)](
        planes,
        y,
        bias,
        m.synthesis.re,
        m.synthesis.im,
        planes.stride(0),
        1 / (m.gain * cut.seq_len),
        batch,
        per,
        length,
        cut.n2,
        dim,
        planes.shape[-1],
        columns,
        N1=cut.n1,
        N1P=padded(cut.n1),
        HP=cut.half_padded,
        C=c,
        HAS_BIAS=bias is not None,
        PRECISION=precision(planes.dtype),
        num_warps=how.planes_warps,
        num_stages=_stages(how.planes_stages, planes, per),
    )
    return y


def filtered(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cut: Digits,
    *,
    unitary: bool = False,
    how: Config | None = None,
) -> Tensor:
    """The filter W of length N on ``x`` [B, L, D], L <= N, taken as zero beyond: L outputs.

    Args:
        x: B >= 1.
        weight: float32 [M, D, 2] with real and imaginary parts side by side.
        bias: [D] or None.
        cut: the digits of N.
        unitary: pass the modes from M up and leave DC and Nyquist alone.
        how: tiles; chosen when None.
    """
    how = how or config(cut, planes_dtype(cut, x.dtype))
    m = matrices(cut, planes_dtype(cut, x.dtype), x.device)
    planes = to_lines(x, cut, m, how, x.shape[1])
    dim = x.shape[2]
    c, columns = tile(how.line_c, dim)
    twiddle = m.twiddle if cut.na == 1 else m.stage_twiddle
    parts, per = shares(len(x), columns * cut.lines, how.line_programs, x.device)
    filter_kernel[(columns * cut.lines * parts,)](
        planes,
        weight,
        m.digit_b.re,
        m.digit_b.im,
        twiddle.re,
        twiddle.im,
        planes.stride(0),
        weight.stride(0),
        weight.stride(1),
        len(x),
        per,
        cut.seq_len,
        _kept(weight, cut),
        dim,
        planes.shape[-1],
        columns,
        N1=cut.n1,
        NA=cut.na,
        NB=cut.nb,
        NBP=padded(cut.nb),
        C=c,
        UNITARY=unitary,
        COLUMNS_FIRST=planes.dtype != torch.float32,
        PRECISION=precision(planes.dtype),
        num_warps=how.line_warps,
        num_stages=_stages(how.line_stages, planes, per),
    )
    return _from_lines(planes, x, bias, cut, m, how)


def _kept(weight: Tensor, cut: Digits) -> int:
    return min(weight.shape[0], cut.seq_len // 2 + 1)


def filter_grads(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    cut: Digits,
    *,
    unitary: bool = False,
    how: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`filtered` with respect to ``x``, ``weight`` and a bias (float32 [D]).

    Each sum over sequences has one owner, and parts are added in order: the same bits every time.
    """
    how = how or config(cut, planes_dtype(cut, x.dtype))
    m = matrices(cut, planes_dtype(cut, x.dtype), x.device)
    batch, length, dim = x.shape
    x_planes = to_lines(x, cut, m, how, length)
    planes = to_lines(grad, cut, m, how, length)
    kept = _kept(weight, cut)
    c, columns = tile(how.grad_c, dim)
    parts, per = shares(batch, columns * cut.lines, how.grad_programs, x.device)
    grad_weight = weight.new_empty((parts, kept, dim, 2))
    grad_bias = weight.new_empty((parts, dim))
    twiddle = m.twiddle if cut.na == 1 else m.stage_twiddle
    filter_grad_kernel[(columns * cut.lines * parts,)](
        x_planes,
        planes,
        weight,
        grad_weight,
        grad_bias,
        m.digit_b.re,
        m.digit_b.im,
        twiddle.re,
        twiddle.im,
        planes.stride(0),
        weight.stride(0),
        weight.stride(1),
        1 / (m.forward_gain**2 * cut.seq_len),
        1 / m.forward_gain,
        batch,
        per,
        cut.seq_len,
        kept,
        dim,
        planes.shape[-1],
        columns,
        N1=cut.n1,
        NA=cut.na,
        NB=cut.nb,
        NBP=padded(cut.nb),
        C=c,
        UNITARY=unitary,
        COLUMNS_FIRST=planes.dtype != torch.float32,
        PRECISION=precision(planes.dtype),
        num_warps=how.grad_warps,
        num_stages=_stages(how.grad_stages, planes, per),
        maxnreg=how.grad_registers,
    )
    # The output's gradient takes their place.
    del x_planes
    whole = _in_order(grad_weight)
    if kept < weight.shape[0]:
        whole = F.pad(whole, (0, 0, 0, 0, 0, weight.shape[0] - kept))
    del grad_weight
    return _from_lines(planes, x, None, cut, m, how), whole, _in_order(grad_bias)


def _in_order(parts: Tensor) -> Tensor:
    """The sum over the first axis, which costs nothing where there is one part."""
    return parts[0] if len(parts) == 1 else parts.sum(0)

"""FNet mixing of any length: Bluestein's chirps around the column transforms.

n k = (n^2 + k^2 - (k - n)^2) / 2 turns the transform over tokens into a convolution with a chirp,
done in a circle of P >= 2 N - 1 tokens (Bluestein 1970). In between, everything is float32: u, its
two filtered forms and their planes, about 12 P / N times the bytes of a bfloat16 x.

Shapes: B batch, N tokens, D width, G = D // 2 + 1 columns that stand for all.
"""

from __future__ import annotations

import functools
import math
from functools import partial

import torch
from torch import Tensor

from flashmix.ops._library import kernel_op
from flashmix.ops._padding import each_length
from flashmix.ops._triton.columns import launch
from flashmix.ops._triton.columns.plan import Digits, longer
from flashmix.ops._triton.launch import SMALLEST, by_batches
from flashmix.ops._triton.matrices import phases
from flashmix.ops.fnet.registration import register
from flashmix.ops.fnet.triton.passes import config, hartley


@functools.cache
def _chirps(seq_len: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """exp(-i pi n^2 / N), [N, 2], and the filters of both parts of its conjugate, [2, P/2+1]."""
    n = torch.arange(seq_len)
    chirp = phases(n * n, 2 * seq_len)
    circle = torch.zeros(size, dtype=torch.complex128)
    circle[:seq_len] = chirp.conj()
    circle[size - seq_len + 1 :] = chirp.conj()[1:].flip(0)
    # Both parts are even in time, so both filters are real.
    filters = torch.fft.rfft(torch.view_as_real(circle), dim=0).real.T
    return torch.view_as_real(chirp).float().to(device), filters.float().to(device)


def _filtered(u: Tensor, factors: Tensor, cut: Digits) -> Tensor:
    """``u`` [B, N, 2 G] with all columns through one real filter [P/2+1]."""
    weight = torch.stack((factors, torch.zeros_like(factors)), dim=-1)[:, None, :]
    return launch.filtered(u, weight.expand(-1, u.shape[2], -1), None, cut)


def mix(x: Tensor, norm: str) -> Tensor:
    """Re(FFT2(x)) of ``x`` [B, N, D], B >= 1."""
    seq_len, dim = x.shape[1:]
    cut = longer(2 * seq_len - 1)
    if cut is None:
        raise AssertionError("the dispatcher refuses such lengths")
    chirp, filters = _chirps(seq_len, cut.seq_len, x.device)
    c_re, c_im = chirp[:, :1], chirp[:, 1:]
    g, gain = hartley(x, config(SMALLEST, dim, x.dtype), torch.float32)
    columns = dim // 2 + 1
    g = g[:, :, :columns]
    u = torch.cat((g * c_re, g * c_im), dim=2)
    by_re = _filtered(u, filters[0], cut)
    by_im = _filtered(u, filters[1], cut)
    v_re = by_re[..., :columns] - by_im[..., columns:]
    v_im = by_re[..., columns:] + by_im[..., :columns]
    scale = 1 / gain
    if norm == "ortho":
        scale /= math.sqrt(seq_len * dim)
    re = (c_re * v_re - c_im * v_im) * scale
    im = (c_re * v_im + c_im * v_re) * scale
    mirrored = (re + im)[..., 1 : (dim + 1) // 2].flip(2)
    return torch.cat((re - im, mirrored), dim=2).to(x.dtype)


@kernel_op("fnet_bluestein")
def fnet(x: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Re(FFT2(x)) of each sequence over its own true length, [B, N, D]."""
    return each_length(partial(by_batches, partial(mix, norm=norm)), mask, x)


register(fnet)

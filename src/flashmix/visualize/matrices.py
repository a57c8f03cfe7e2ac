"""What a mixer does between tokens, as N x N matrices: row i is output token i, column j input j.

Shapes: B batch, N tokens, D width, H heads, C input channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashmix.errors import ArgumentError
from flashmix.mixers import Hybrid, Mixer
from flashmix.ops import fourier_weights

DIRECTIONS = 64
"""Directions in which :func:`influence` measures by default; all of them up to this width."""

_CHUNK_ELEMENTS = 1 << 22


def has_head_matrices(mixer: Mixer) -> bool:
    """Whether :func:`head_matrices` is defined: the attentions, and Fourier attention."""
    return "weights" in mixer.pictures


def hybrid_parts(mixer: Hybrid) -> list[Mixer]:
    """The mixers of a hybrid."""
    return [part for part in mixer.mixers if isinstance(part, Mixer)]


def is_affine(mixer: Mixer) -> bool:
    """Whether outputs are a fixed linear map of the inputs plus a bias, whatever the data."""
    return "impulse" in mixer.pictures


@torch.no_grad()
def head_matrices(mixer: Mixer, x: Tensor) -> Tensor:
    """The matrix by which each head multiplies its values, [B, H, N, N], for tokens x [B, N, D].

    The attention weights of attention, local and topk, whose rows sum to one. For Fourier
    attention the circulant matrix of the head's filter at these tokens, which has signs.

    Raises:
        ArgumentError: the mixer multiplies by no such matrix; see :func:`impulse_response` and
            :func:`influence`.
    """
    if not has_head_matrices(mixer):
        raise ArgumentError(
            f"head_matrices: {type(mixer).__name__} has no matrix per head; "
            "use impulse_response or influence"
        )
    if "gains" in mixer.pictures:
        return fourier_matrices(head_values(mixer, x))
    weights: Tensor = mixer(x, return_weights=True)[1]
    return weights


def head_values(mixer: Any, x: Tensor) -> Tensor:
    """What each head of a mixer that weighs frequencies mixes, [B, H, N, dh], of x [B, N, D]."""
    v: Tensor = mixer.heads(x, None)
    return v


def fourier_matrices(v: Tensor) -> Tensor:
    """The circulant matrix by which Fourier attention multiplies v [B, H, N, dh]: [B, H, N, N]."""
    share = fourier_weights(v).double()
    n = v.shape[2]
    kernel = torch.fft.irfft(share * share.shape[-1], n=n, dim=-1)
    token = torch.arange(n, device=v.device)
    return kernel[..., (token[:, None] - token) % n].to(v.dtype)


@torch.no_grad()
def impulse_response(
    mixer: Mixer, seq_len: int, channel: int = 0, *, dtype: torch.dtype | None = None
) -> Tensor:
    """What a unit impulse in ``channel`` does, [N, N, D]: entry [i, j, d] is output i, channel d.

    The response to an impulse at token j, less the response to zeros. For an affine mixer these
    are its coefficients: ``y[i, d] = sum over j and channels c of R_c[i, j, d] x[j, c] + y0``.
    Computed in ``dtype``, by default that of the mixer's parameters.

    Raises:
        ArgumentError: the mixer is not affine (its response would depend on the impulse's size),
            or there is no such channel.
    """
    if not is_affine(mixer):
        raise ArgumentError(
            f"impulse_response: {type(mixer).__name__} is not a fixed linear map; use influence"
        )
    if not 0 <= channel < mixer.dim:
        raise ArgumentError(
            f"impulse_response: channel must be 0 to {mixer.dim - 1}, got {channel}"
        )
    like = next(mixer.parameters(), torch.empty(0))
    impulses = like.new_zeros(seq_len, seq_len, mixer.dim, dtype=dtype)
    impulses[torch.arange(seq_len), torch.arange(seq_len), channel] = 1
    rest: Tensor = mixer(torch.zeros_like(impulses[:1]))
    response: Tensor = mixer(impulses) - rest
    return response.transpose(0, 1)


def influence(
    mixer: Callable[[Tensor], Tensor], x: Tensor, *, directions: int = DIRECTIONS, seed: int = 0
) -> Tensor:
    """How strongly output token i depends on input token j at ``x`` [N, D]: float [N, N].

    The Frobenius norm of the D x D block of the Jacobian, d y[i] / d x[j], at these tokens. It
    counts every path from input to output: weights, what they depend on, and projections.

    Args:
        mixer: any mixer, or function of tokens [B, N, D] that returns as many.
        x: the tokens at which the derivative is taken.
        directions: of the output's D channels, in how many orthogonal directions to measure.
            With D or more the norm is exact; with fewer it is an estimate whose square is unbiased.
        seed: of the directions.
    """
    n, dim = x.shape
    count = min(directions, dim)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    basis = (basis[:count] * (dim / count) ** 0.5).to(x)
    squares = torch.zeros(n, n, dtype=torch.float64)
    rows = max(1, _CHUNK_ELEMENTS // (n * dim))
    for chunk in torch.arange(n).split(rows):
        # Every sequence of the batch is x; sequence b is for output token chunk[b].
        leaf = x.detach().expand(len(chunk), n, dim).clone().requires_grad_()
        y = mixer(leaf)[torch.arange(len(chunk)), chunk]
        for k, direction in enumerate(basis):
            (gradient,) = torch.autograd.grad(
                y, leaf, direction.expand_as(y), retain_graph=k + 1 < count
            )
            squares[chunk] += gradient.double().square().sum(-1).cpu()
    return squares.sqrt()

"""Cosines and sines of whole turns, made where they are used: a DFT matrix of any length.

The angle of row k and column n of a DFT over L tokens is k n / L turns. k n mod L is exact in
float32 while k n < 2^24, so a length needs no table.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def residue(k, n, L):
    """k n mod L in float32, between -L / 2 and L / 2; exact while k n < 2^24."""
    product = (k * n).to(tl.float32)
    length = L.to(tl.float32)
    return product - tl.floor(product * (1.0 / length) + 0.5) * length


@triton.jit
def add_residues(a, b, L):
    """(a + b) mod L of two residues, between -L / 2 and L / 2; exact while L < 2^23."""
    length = L.to(tl.float32)
    total = a + b
    total = tl.where(total > 0.5 * length, total - length, total)
    return tl.where(total < -0.5 * length, total + length, total)


@triton.jit
def cos_sin(turns):
    """cos and sin of 2 pi ``turns``, float32 within 1.5e-7, for |turns| up to 1/2.

    Polynomials in turns^2 that lose least on the quarter turn; the rest is that quarter mirrored.
    """
    beyond = tl.abs(turns) > 0.25
    t = tl.where(beyond, tl.where(turns > 0, 0.5, -0.5) - turns, turns)
    u = t * t
    c = 60.142364501953125 + u * -24.970579147338867
    c = 64.93934631347656 + u * (-85.4534912109375 + u * c)
    c = 1.0 + u * (-19.739208221435547 + u * c)
    s = 42.009033203125 + u * -14.388656616210938
    s = 81.605224609375 + u * (-76.7042465209961 + u * s)
    s = 6.2831854820251465 + u * (-41.34170150756836 + u * s)
    return tl.where(beyond, -c, c), t * s


@triton.jit
def cos_sin_of(residues, L):
    """cos and sin of 2 pi ``residues`` / L."""
    return cos_sin(residues * (1.0 / L.to(tl.float32)))


@triton.jit
def rotate(c, s, by_c, by_s):
    """cos and sin of the sum of two angles, from those of both."""
    return c * by_c - s * by_s, s * by_c + c * by_s


@triton.jit
def first_angles(k, L, STEP: tl.constexpr):
    """Cosines and sines of k n / L turns for n < STEP, and what :func:`next_angles` needs."""
    turned = residue(k[:, None], tl.arange(0, STEP)[None, :], L)
    c, s = cos_sin_of(turned, L)
    step = residue(k[:, None], STEP, L)
    step_c, step_s = cos_sin_of(step, L)
    return turned, c, s, step, step_c, step_s


@triton.jit
def next_angles(turned, c, s, step, step_c, step_s, L, EXACT: tl.constexpr):
    """Those of the next STEP n: by residues, which are ``EXACT``, or rotated, a rounding each."""
    if EXACT:
        turned = add_residues(turned, step, L)
        c, s = cos_sin_of(turned, L)
    else:
        c, s = rotate(c, s, step_c, step_s)
    return turned, c, s

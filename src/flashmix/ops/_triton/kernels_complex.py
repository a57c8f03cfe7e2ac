"""Complex arithmetic that kernels share; a complex tile is two real ones."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a_re, a_im, b_re, b_im, PRECISION: tl.constexpr):
    """The complex matrix product a b."""
    re = tl.dot(a_re, b_re, input_precision=PRECISION)
    re = tl.dot(a_im, -b_im, re, input_precision=PRECISION)
    im = tl.dot(a_re, b_im, input_precision=PRECISION)
    im = tl.dot(a_im, b_re, im, input_precision=PRECISION)
    return re, im


@triton.jit
def real_product(a_re, a_im, b_re, b_im, PRECISION: tl.constexpr):
    """The real part of the complex matrix product a b."""
    re = tl.dot(a_re, b_re, input_precision=PRECISION)
    return tl.dot(-a_im, b_im, re, input_precision=PRECISION)


@triton.jit
def turn(a_re, a_im, w_re, w_im):
    """The complex product, element by element."""
    return a_re * w_re - a_im * w_im, a_re * w_im + a_im * w_re


@triton.jit
def digit_last(a, ROWS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """[ROWS, FIRST, SECOND], in any shape of that order, as the matrix [ROWS * SECOND, FIRST]."""
    a = tl.permute(tl.reshape(a, (ROWS, FIRST, SECOND)), (0, 2, 1))
    return tl.reshape(a, (ROWS * SECOND, FIRST))

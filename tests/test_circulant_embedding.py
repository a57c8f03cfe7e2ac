"""A filter of one length as a filter of a longer one: the same outputs, the same gradients."""

import pytest
import torch

from flashmix.ops.spectral.circulant_embedding import embedded_filter, lengthened_grad
from flashmix.ops.spectral.reference import circular
from helpers import assert_close, randn

each_case = pytest.mark.parametrize(
    ("n", "size", "modes"), [(1, 2, 3), (2, 4, 1), (7, 14, 2), (7, 16, 9), (10, 24, 6)]
)


@each_case
@pytest.mark.parametrize("unitary", [False, True])
def test_acts_as_the_shorter_one(n, size, modes, unitary):
    x, weight = randn(2, n, 3), randn(modes, 3, 2, seed=1)
    longer = torch.view_as_complex(embedded_filter(weight, n, size, unitary))
    y = torch.fft.irfft(longer * torch.fft.rfft(x, n=size, dim=1), n=size, dim=1)[:, :n]
    assert_close(y, circular(x, weight, None, unitary))


@each_case
@pytest.mark.parametrize("unitary", [False, True])
def test_its_gradient_is_autograds(n, size, modes, unitary):
    weight = randn(modes, 3, 2, seed=1).requires_grad_()
    upstream = randn(size // 2 + 1, 3, 2, seed=2)
    # DC and Nyquist of a real circle are real: their imaginary parts reach nothing.
    upstream[0, :, 1] = upstream[-1, :, 1] = 0
    (want,) = torch.autograd.grad(embedded_filter(weight, n, size, unitary), weight, upstream)
    assert_close(lengthened_grad(upstream, weight.detach(), n, unitary), want)

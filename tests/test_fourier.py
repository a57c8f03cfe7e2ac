"""The laws of Fourier attention: its definition, its weights, the scale of white input."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmix import ops
from helpers import OPS, assert_close, each_impl, make_mixer, randn, skip_unless_runs

each_fourier_impl = each_impl([case for case in OPS if case.operator == "fourier"])


def transcribed_weights(v):
    """Softmax over frequencies of log(power + eps), power averaged over the head's channels."""
    power = torch.fft.rfft(v, dim=2).abs().square().mean(-1)
    return torch.softmax(torch.log(power + 1e-6), dim=-1)


def transcribed(v):
    """The definition, word by word."""
    spectrum = torch.fft.rfft(v, dim=2)
    frequencies = v.shape[2] // 2 + 1
    weighed = spectrum * transcribed_weights(v)[..., None] * frequencies
    return torch.fft.irfft(weighed, n=v.shape[2], dim=2)


@each_fourier_impl
@given(n=st.integers(1, 40))
def test_equals_its_definition(case, impl, device, n):
    skip_unless_runs("fourier", impl, torch.float64, device)
    v = randn(2, 3, n, 5, device=device).requires_grad_()
    upstream = randn(2, 3, n, 5, seed=1, device=device)
    y, want = ops.fourier(v, impl=impl), transcribed(v)
    assert_close(y, want)
    (grad,), (want_grad,) = (torch.autograd.grad(out, v, upstream) for out in (y, want))
    assert_close(grad, want_grad)


@each_fourier_impl
def test_white_input_keeps_its_scale(case, impl, device):
    # A unit impulse in each channel has a flat spectrum, so every frequency weighs the same.
    v = torch.zeros(1, 2, 12, 4, device=device)
    v[:, :, 5] = randn(1, 2, 4, device=device, dtype=torch.float32)
    # Twelve tokens in float32: a few roundings of 6e-8 each.
    assert_close(ops.fourier(v, impl=impl), v, 1e-6)


@each_fourier_impl
def test_zeros_stay_zero_and_finite(case, impl, device):
    v = torch.zeros(1, 2, 7, 4, device=device, requires_grad=True)
    y = ops.fourier(v, impl=impl)
    y.sum().backward()
    assert not y.any()
    assert v.grad.isfinite().all()


@given(n=st.integers(1, 30))
def test_weights_are_a_share_over_the_frequencies(device, n):
    v = randn(2, 3, n, 5, device=device)
    weights = ops.fourier_weights(v)
    assert weights.shape == (2, 3, n // 2 + 1)
    assert_close(weights, transcribed_weights(v))
    assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


def test_mixer_returns_its_weights_and_magnitude(device):
    mixer = make_mixer("fourier", 12, num_heads=3, device=device)
    x = randn(2, 7, 12, device=device)
    y, weights = mixer(x, return_weights=True)
    v = mixer.heads(x, None)
    assert_close(y, mixer(x))
    assert_close(weights, ops.fourier_weights(v))
    assert_close(mixer.magnitude(x), torch.fft.rfft(v, dim=2).abs())
    assert mixer.magnitude(x).shape == (2, 3, 4, 4)


def test_mixer_is_the_op_between_two_projections(device):
    mixer = make_mixer("fourier", 12, num_heads=3, device=device)
    x = randn(2, 7, 12, device=device)
    v = mixer.value(x).view(2, 7, 3, 4).transpose(1, 2)
    assert_close(mixer(x), mixer.out(transcribed(v).transpose(1, 2).reshape(2, 7, 12)))

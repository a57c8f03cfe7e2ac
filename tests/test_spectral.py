"""The laws of spectral filtering: identity at first, energy, causality, one W for any length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmix import create_mixer, ops
from flashmix.mixers import Spectral
from flashmix.ops.spectral.filter import filter_for_length
from helpers import (
    FLOAT64_BUDGET,
    OPS,
    assert_close,
    each_impl,
    make_mixer,
    randn,
    relative_error,
    right_padding,
    skip_unless_runs,
)

each_spectral_impl = each_impl([case for case in OPS if case.name == "spectral"])
each_causal_impl = each_impl([case for case in OPS if case.name == "spectral-causal"])
each_variant = each_impl([case for case in OPS if case.operator == "spectral"])
lengths = st.integers(1, 40)
modes = st.integers(1, 25)

DIM = 6


def transcribed(x, weight, bias, unitary=False):
    """The definition, literally: a sum over the modes of one real signal at a time, O(N^2)."""
    n = x.shape[1]
    time = torch.arange(n, device=x.device, dtype=x.dtype)
    y = torch.zeros_like(x)
    for mode in range(n // 2 + 1):
        wave = torch.exp(2j * torch.pi * mode * time / n)
        coefficient = torch.einsum("bnd,n->bd", x.to(wave.dtype), wave.conj()) / n
        own = mode == 0 or 2 * mode == n
        if mode >= len(weight):
            factor = 1.0 if unitary else 0.0
        elif own:
            factor = 1.0 if unitary else weight[mode].real
        else:
            factor = weight[mode]
        share = torch.einsum("bd,n->bnd", coefficient * factor, wave)
        y = y + (1 if own else 2) * share.real
    return y + bias


@each_spectral_impl
@pytest.mark.parametrize("unitary", [False, True])
@given(n=lengths, m=modes)
def test_equals_its_definition(case, impl, device, unitary, n, m):
    skip_unless_runs("spectral", impl, torch.float64, device)
    x, bias = randn(2, n, DIM, device=device), randn(DIM, seed=1, device=device)
    weight = torch.complex(*randn(2, m, DIM, seed=2, device=device))
    y = ops.spectral(x, weight, bias, unitary=unitary, impl=impl)
    assert_close(y, transcribed(x, weight, bias, unitary))


@each_spectral_impl
@given(n=lengths)
def test_is_the_identity_when_w_is_one_and_all_modes_are_kept(case, impl, device, n):
    x = randn(2, n, DIM, device=device)
    mixer = Spectral(DIM, modes=n // 2 + 1, impl=impl).to(device, torch.float64)
    skip_unless_runs("spectral", impl, torch.float64, device)
    assert_close(mixer(x), x)


@pytest.mark.parametrize("context", [None, 5, 8])
@given(n=lengths)
def test_causal_starts_as_the_identity_when_the_context_holds_no_more_than_its_modes(
    device, context, n
):
    x = randn(2, n, DIM, device=device)
    mixer = Spectral(DIM, modes=5, causal=True, context=context).to(device, torch.float64)
    assert_close(mixer(x), x)


@each_spectral_impl
@given(n=lengths, m=modes)
def test_energy_is_kept_when_unitary(case, impl, device, n, m):
    skip_unless_runs("spectral", impl, torch.float64, device)
    mixer = make_mixer("spectral", DIM, modes=m, unitary=True, impl=impl, device=device)
    x = randn(2, n, DIM, device=device)
    mask = right_padding(2, n, device=device)
    for y, kept in ((mixer(x), x), (mixer(x, mask), x * mask[..., None])):
        assert_close(y.square().sum(1), kept.square().sum(1))


def test_unitary_changes_something():
    mixer = make_mixer("spectral", DIM, modes=3, unitary=True)
    x = randn(2, 9, DIM)
    assert relative_error(mixer(x), x) > 0.1


@each_causal_impl
@pytest.mark.parametrize("n", [3, 9, 24, 150])
@pytest.mark.parametrize("context", [None, 4, 20, 200])
def test_causal_gradient_with_respect_to_later_tokens_is_exactly_zero(
    case, impl, device, n, context
):
    mixer = make_mixer(
        "spectral", DIM, modes=5, causal=True, context=context, impl=impl, device=device
    ).float()
    x = randn(1, n, DIM, dtype=torch.float32, device=device).requires_grad_()
    y = mixer(x)
    for t in range(0, n, max(1, n // 7)):
        (grad,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        assert not grad[:, t + 1 :].any()
        assert grad[:, t].any()


@each_causal_impl
@pytest.mark.parametrize("context", [None, 4, 20, 200])
def test_causal_prefixes_agree_to_the_last_bit(case, impl, device, context):
    mixer = make_mixer(
        "spectral", DIM, modes=5, causal=True, context=context, impl=impl, device=device
    )
    x = randn(2, 150, DIM, device=device)
    full = mixer(x)
    for n in (1, 2, 7, 64, 65, 149):
        assert_close(mixer(x[:, :n]), full[:, :n])
        later = x.clone()
        later[:, n:] = 1e6
        assert torch.equal(mixer(later)[:, :n], full[:, :n])


@each_causal_impl
@given(n=st.integers(1, 60), m=st.integers(1, 9), context=st.integers(1, 70))
def test_causal_equals_its_definition(case, impl, device, small_blocks, n, m, context):
    skip_unless_runs("spectral", impl, torch.float64, device)
    x, weight = randn(2, n, DIM, device=device), randn(m, DIM, 2, seed=1, device=device)
    filled = torch.view_as_complex(weight)[: context // 2 + 1].clone()
    filled[0].imag.zero_()
    if 2 * (len(filled) - 1) == context:
        filled[-1].imag.zero_()
    taps = torch.fft.irfft(filled, n=context, dim=0)
    want = torch.zeros_like(x)
    for t in range(n):
        for s in range(min(t + 1, context)):
            want[:, t] += taps[s] * x[:, t - s]
    assert_close(ops.spectral(x, weight, causal=True, context=context, impl=impl), want)


@each_variant
@given(n=lengths)
def test_one_weight_works_at_any_length(case, impl, device, n):
    skip_unless_runs("spectral", impl, torch.float32, device)
    (x,), parameters = case.inputs(2, n, DIM, dtype=torch.float32, device=device)
    y = case.run(x, *parameters, impl=impl)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.isfinite().all()


@each_spectral_impl
def test_complex_weight_is_its_real_and_imaginary_parts(case, impl, device):
    x, weight = randn(2, 9, DIM, device=device), randn(4, DIM, 2, seed=1, device=device)
    skip_unless_runs("spectral", impl, torch.float64, device)
    split = ops.spectral(x, weight, impl=impl)
    assert torch.equal(ops.spectral(x, torch.view_as_complex(weight), impl=impl), split)


@pytest.mark.parametrize("n", [8, 9])
def test_imaginary_parts_of_self_conjugate_modes_do_nothing(n, device):
    x, weight = randn(2, n, DIM, device=device), randn(5, DIM, 2, seed=1, device=device)
    own = [0, 4] if n == 8 else [0]
    changed = weight.clone()
    changed[own, :, 1] += 1
    assert torch.equal(ops.spectral(x, changed), ops.spectral(x, weight))


@pytest.mark.parametrize(("n", "own"), [(1, [0]), (2, [0, 1]), (8, [0, 4]), (9, [0])])
@pytest.mark.parametrize("unitary", [False, True])
def test_filter_is_real_at_self_conjugate_modes(n, own, unitary):
    # Some FFT libraries drop these imaginary parts themselves; others leave them undefined.
    factors = filter_for_length(randn(5, DIM, 2), n, unitary)
    assert not factors[own].imag.any()
    others = [mode for mode in range(len(factors)) if mode not in own]
    assert factors[others].imag.all()


@pytest.mark.parametrize(
    "options",
    [
        {"modes": 4},
        {"modes": 4, "unitary": True},
        {"modes": 4, "causal": True},
        {"modes": 4, "causal": True, "context": 12},
    ],
    ids=str,
)
def test_mixer_is_the_op_with_its_options(options, device):
    mixer = make_mixer("spectral", DIM, device=device, **options)
    x = randn(2, 15, DIM, device=device)
    options = dict(options)
    assert options.pop("modes") == mixer.modes
    if mixer.unitary:
        weight = torch.polar(torch.ones_like(mixer.phase), mixer.phase)
    else:
        weight = torch.view_as_complex(mixer.weight)
    assert_close(mixer(x), ops.spectral(x, weight, mixer.bias, **options))


@each_impl([case for case in OPS if case.operator == "spectral"], without=("reference",))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 2, 8, 9, 90])
def test_gradients_equal_those_of_the_reference(case, impl, device, masked, n):
    skip_unless_runs("spectral", impl, torch.float64, device)
    (x,), parameters = case.inputs(3, n, DIM, device=device)
    leaves = [one.requires_grad_() for one in (x, *parameters)]
    mask = right_padding(3, n, device=device) if masked else None
    upstream = randn(3, n, DIM, seed=9, device=device)
    got, want = (
        torch.autograd.grad(case.run(*leaves, mask=mask, impl=name), leaves, upstream)
        for name in (impl, "reference")
    )
    for one, other in zip(got, want, strict=True):
        assert (one - other).norm() <= FLOAT64_BUDGET * max(1, other.norm())


def test_bias_is_added_at_real_tokens_only(device):
    mixer = create_mixer("spectral", DIM).to(device)
    with torch.no_grad():
        mixer.bias.fill_(3)
    mask = right_padding(2, 4, device=device)
    y = mixer(torch.zeros(2, 4, DIM, device=device), mask)
    assert torch.equal(y, mask[..., None].expand_as(y) * 3.0)

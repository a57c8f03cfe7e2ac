"""The laws of FNet mixing: its formula, symmetry, self-adjointness, and a backward that is free."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmix import create_mixer, ops
from flashmix.ops.fnet.dense import MOST
from helpers import FLOAT64_BUDGET, OPS, assert_close, each_impl, randn, skip_unless_runs

each_fnet = each_impl([case for case in OPS if case.operator == "fnet"])
each_fnet_impl = each_impl([case for case in OPS if case.name == "fnet"])
sizes = st.integers(1, 64)

# An FFT of length n errs by about eps * log2(n) / 3; sixteen levels of float32 stay below 1e-6.
FLOAT32_BUDGET = 1e-6


def mirrored(y):
    """Y[-k, -j] at [k, j], indices modulo N and D."""
    return y.flip((1, 2)).roll((1, 1), (1, 2))


@each_fnet_impl
@given(n=sizes, dim=sizes)
def test_equals_the_real_part_of_the_two_dimensional_fft(case, impl, device, n, dim):
    x = randn(2, n, dim, dtype=torch.float32, device=device)
    assert_close(case.run(x, impl=impl), torch.fft.fft2(x.double()).real, FLOAT32_BUDGET)


@each_fnet_impl
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 127, 61), (2, 521, 67), (1, 1009, 3), (2, 4096, 768)]
)
def test_equals_the_real_part_of_the_fft_at_large_and_prime_sizes(case, impl, shape, device):
    if impl == "dense" and max(shape) > MOST:
        pytest.skip(f"dense takes N and D up to {MOST}")
    x = randn(*shape, dtype=torch.float32, device=device)
    assert_close(case.run(x, impl=impl), torch.fft.fft2(x.double()).real, FLOAT32_BUDGET)


@each_fnet
@given(n=sizes, dim=sizes)
def test_output_is_symmetric(case, impl, device, n, dim):
    skip_unless_runs("fnet", impl, torch.float64, device)
    y = case.run(randn(2, n, dim, device=device), impl=impl)
    assert_close(mirrored(y), y)


@each_fnet
@given(n=sizes, dim=sizes)
def test_is_self_adjoint(case, impl, device, n, dim):
    skip_unless_runs("fnet", impl, torch.float64, device)
    x, y = (randn(2, n, dim, seed=seed, device=device) for seed in (0, 1))
    forward, adjoint = (case.run(x, impl=impl) * y).sum(), (x * case.run(y, impl=impl)).sum()
    # Two sums of N * D products agree to rounding of their largest possible value.
    assert abs(forward - adjoint) <= FLOAT64_BUDGET * case.run(x, impl=impl).norm() * y.norm()


@each_fnet
@given(n=sizes, dim=sizes)
def test_gradient_is_fnet_of_the_gradient(case, impl, device, n, dim):
    skip_unless_runs("fnet", impl, torch.float64, device)
    x, upstream = (randn(2, n, dim, seed=seed, device=device) for seed in (0, 1))
    (grad,) = torch.autograd.grad(case.run(x.requires_grad_(), impl=impl), x, upstream)
    assert_close(grad, case.run(upstream, impl=impl))


@pytest.mark.parametrize("masked", [False, True])
def test_backward_saves_nothing(masked, device):
    saved = []
    x = randn(2, 9, 8, dtype=torch.float32, device=device).requires_grad_()
    mask = torch.ones(2, 9, dtype=torch.bool, device=device) if masked else None
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda index: index):
        y = ops.fnet(x, mask=mask)
    assert y.requires_grad
    assert not [x for x in saved if x.is_floating_point()]


@each_impl([case for case in OPS if case.name == "fnet-ortho"])
@given(n=sizes, dim=sizes)
def test_twice_with_ortho_gives_the_even_part(case, impl, device, n, dim):
    skip_unless_runs("fnet", impl, torch.float64, device)
    x = randn(2, n, dim, device=device)
    assert_close(case.run(case.run(x, impl=impl), impl=impl), (x + mirrored(x)) / 2)


@each_fnet_impl
def test_norm_ortho_divides_by_the_root_of_true_length_times_width(case, impl, device):
    skip_unless_runs("fnet", impl, torch.float64, device)
    x = randn(2, 6, 10, device=device)
    mask = torch.tensor([[True] * 6, [False] * 2 + [True] * 4], device=device)
    ortho = ops.fnet(x, mask=mask, norm="ortho", impl=impl)
    scale = torch.tensor([60.0, 40.0], device=device, dtype=x.dtype).sqrt()[:, None, None]
    assert_close(ortho * scale, ops.fnet(x, mask=mask, impl=impl))


def test_mixer_is_the_op_with_its_norm(device):
    x = randn(2, 7, 10, dtype=torch.float32, device=device)
    for norm in ("backward", "ortho"):
        assert torch.equal(create_mixer("fnet", 10, norm=norm)(x), ops.fnet(x, norm=norm))

"""Half precision: how far each dtype may be from float64, for operators, modules and autocast."""

from __future__ import annotations

import copy

import pytest
import torch

from flashmix import ops
from flashmix.models import Encoder
from helpers import (
    HALF,
    OPS,
    assert_close,
    each_impl,
    make_mixer,
    randn,
    right_padding,
    skip_unless_runs,
)

each_masking = pytest.mark.parametrize("masked", [False, True])
each_half = pytest.mark.parametrize("dtype", HALF)

# Rounding to nearest errs by at most half an epsilon, evenly spread: 1/sqrt(12) epsilon in RMS.
# Independent roundings add in squares; sums that cancel amplify by less than two here.
ROUNDING = 12**-0.5
TRANSFORM = 0.5  # computed in float32 and rounded once, gradients too: the bound itself
ATTENTION = 2 * 4**0.5 * ROUNDING  # scaled q, scores, weights, output
ATTENTION_BACKWARD = 2 * 8**0.5 * ROUNDING  # and weights, dy v^T, scores' gradient, product
MODULE = 2 * 12**0.5 * ROUNDING  # parameters, input, two projections, the mixing, sums of parts
MODULE_BACKWARD = 2 * 24**0.5 * ROUNDING  # the same on the way back

# Top-k keeps all keys here: rounded projections may well choose others, which is no error.
MODULES = [
    "attention",
    "attention(impl=naive)",
    "local(window=5)",
    "topk(topk=99)",
    "topk(topk=99, selection=block)",
    "fnet",
    "spectral(modes=4)",
    "spectral(modes=4, unitary=True)",
    "spectral(modes=4, causal=True)",
    "fourier",
    "hybrid(mixers=('spectral', 'local(window=3)'))",
    "hybrid(mixers=('spectral', 'local(window=3)', 'attention'), combine=gate)",
    "hybrid(mixers=('fourier', 'spectral', 'attention'), combine=heads)",
]
SCORED = [case for case in OPS if case.operator.endswith("attention")]


@each_impl()
@pytest.mark.parametrize("dtype", HALF)
@each_masking
def test_op_in_half_precision_is_near_float64(case, impl, dtype, masked, device):
    skip_unless_runs(case.operator, impl, dtype, device)
    tokens, parameters = case.inputs(2, 37, 12, heads=3, dtype=dtype, device=device)
    upstream = randn(*tokens[0].shape, seed=9, dtype=dtype, device=device)
    mask = right_padding(2, 37, device=device) if masked else None

    def outputs(impl, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (*tokens, *parameters)]
        y = case.run(*leaves, mask=mask, impl=impl)
        return y, torch.autograd.grad(y, leaves, upstream.to(dtype))

    (y, grads), (want, want_grads) = outputs(impl, dtype), outputs("reference", torch.float64)
    forward, backward = (ATTENTION, ATTENTION_BACKWARD) if case in SCORED else (TRANSFORM,) * 2
    eps = torch.finfo(dtype).eps
    assert y.dtype == dtype
    assert_close(y, want, forward * eps)
    for grad, want_grad in zip(grads, want_grads, strict=True):
        assert grad.dtype == dtype
        assert_close(grad, want_grad, backward * eps)


def outputs_and_grads(module, x, mask, upstream):
    x = x.detach().requires_grad_()
    y = module(x, mask)
    return y, *torch.autograd.grad(y, [x, *module.parameters()], upstream.to(y.dtype))


def check_near_float64(got, want, dtype):
    eps = torch.finfo(dtype).eps
    assert_close(got[0], want[0], MODULE * eps)
    for grad, want_grad in zip(got[1:], want[1:], strict=True):
        assert_close(grad, want_grad, MODULE_BACKWARD * eps)


@pytest.mark.parametrize("text", MODULES)
@each_half
@each_masking
def test_module_in_half_precision_is_near_float64(text, dtype, masked, device):
    mixer = make_mixer(text, 15, num_heads=3, dtype=dtype, device=device)
    x, upstream = randn(2, 2, 13, 15, dtype=dtype, device=device)
    mask = right_padding(2, 13, device=device) if masked else None
    got = outputs_and_grads(mixer, x, mask, upstream)
    assert got[0].dtype == dtype
    exact = copy.deepcopy(mixer).double()
    check_near_float64(got, outputs_and_grads(exact, x.double(), mask, upstream), dtype)


@pytest.mark.parametrize("text", MODULES)
@each_half
@each_masking
def test_module_under_autocast_is_near_float64(text, dtype, masked, device):
    mixer = make_mixer(text, 15, num_heads=3, dtype=torch.float32, device=device)
    x, upstream = randn(2, 2, 13, 15, dtype=torch.float32, device=device)
    mask = right_padding(2, 13, device=device) if masked else None
    with torch.autocast(device, dtype=dtype):
        got = outputs_and_grads(mixer, x, mask, upstream)
    exact = copy.deepcopy(mixer).double()
    check_near_float64(got, outputs_and_grads(exact, x.double(), mask, upstream), dtype)


@each_impl([case for case in OPS if case not in SCORED])
def test_transforms_keep_float32_under_autocast(case, impl, device):
    tokens, parameters = case.inputs(2, 37, 12, heads=3, dtype=torch.float32, device=device)
    leaves = [x.requires_grad_() for x in (*tokens, *parameters)]
    upstream = randn(*tokens[0].shape, seed=9, dtype=torch.float32, device=device)

    def outputs():
        y = case.run(*leaves, impl=impl)
        return y, *torch.autograd.grad(y, leaves, upstream)

    want = outputs()
    with torch.autocast(device, dtype=torch.bfloat16):
        got = outputs()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@each_impl([case for case in OPS if case.operator == "topk_attention"])
def test_top_k_chooses_by_float32_scores_under_autocast(case, impl, device):
    tokens, _ = case.inputs(2, 37, 12, heads=3, dtype=torch.float32, device=device)
    want = case.run(*tokens, impl=impl)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = case.run(*tokens, impl=impl)
    # Other keys would change rows altogether; narrowed weights and values only round.
    assert_close(got, want, ATTENTION * torch.finfo(torch.bfloat16).eps)


@each_half
def test_encoder_trains_under_autocast_at_odd_sizes(dtype, device):
    torch.manual_seed(0)
    encoder = Encoder(15, 3, "fnet(norm=ortho),spectral+local,fourier", num_heads=3).to(device)
    x = randn(3, 13, 15, dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=dtype):
        y = encoder(x, right_padding(3, 13, device=device))
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@each_half
def test_fnet_rounds_once_where_half_products_would_not(dtype, device):
    x = randn(2, 512, 64, dtype=dtype, device=device)
    want = torch.fft.fft2(x.double()).real
    assert_close(ops.fnet(x), want, ROUNDING * torch.finfo(dtype).eps)

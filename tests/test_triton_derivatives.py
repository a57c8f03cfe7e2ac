"""The derivatives of Triton's kernels: right in every order and mode, and their state saved."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from flashmix import ops
from helpers import assert_close, randn
from triton_helpers import DEVICE, needs_triton

pytestmark = needs_triton


def masked(count):
    """Holes, and padding at the end."""
    mask = torch.ones(2, count, dtype=torch.bool, device=DEVICE)
    mask[0, 1::5], mask[1, count // 2 :] = False, False
    return mask


def heads(count, **options):
    """Two heads of queries share one of keys and values."""
    return [(2, 2, count, 16), (2, 1, count, 16), (2, 1, count, 16)], options


TOKENS, FILTER = (2, 16, 32), (3, 32, 2)
CASES = {
    "local": (ops.local_attention, "triton", *heads(20, window=5)),
    "topk": (ops.topk_attention, "triton", *heads(10, topk=3)),
    "block": (ops.topk_attention, "triton", *heads(140, topk=64, selection="block")),
    "fnet": (ops.fnet, "triton", [TOKENS], {}),
    "fnet-columns": (ops.fnet, "triton_columns", [TOKENS], {}),
    "spectral": (ops.spectral, "triton", [TOKENS, FILTER], {}),
    "spectral-columns": (ops.spectral, "triton_columns", [TOKENS, FILTER], {}),
    "spectral-ragged": (ops.spectral, "triton_ragged", [TOKENS, FILTER], {}),
    "fourier-ragged": (ops.fourier, "triton_ragged", [(2, 2, 16, 16)], {}),
}


def make(name):
    """``run(*inputs, mask=, impl=)``, the kernels' name, and inputs in float32."""
    function, impl, shapes, options = CASES[name]
    inputs = [randn(*s, seed=i, dtype=torch.float32, device=DEVICE) for i, s in enumerate(shapes)]
    return partial(function, **options), impl, [x.requires_grad_() for x in inputs]


@pytest.fixture(params=CASES)
def case(request):
    return make(request.param)


def tokens(inputs):
    return inputs[0].shape[1 if inputs[0].dim() == 3 else 2]


def doubled(inputs):
    return [x.detach().double().requires_grad_() for x in inputs]


def directions(inputs):
    return tuple(randn(*x.shape, seed=9 + i).to(x) for i, x in enumerate(inputs))


def results(run, inputs, mask):
    """The derivatives of the gradients and of the output along a direction."""
    y = run(*inputs, mask=mask)
    first = torch.autograd.grad(y, inputs, randn(*y.shape, seed=5).to(y), create_graph=True)
    total = sum((g * t).sum() for g, t in zip(first, directions(inputs), strict=True))
    total = total + sum(0 * x.sum() for x in inputs)  # what is linear has no second derivative
    yield from torch.autograd.grad(total, inputs, retain_graph=True)
    plain = tuple(x.detach() for x in inputs)
    yield torch.func.jvp(partial(run, mask=mask), plain, directions(inputs))[1]
    # Whether saved or not needed: a mask that changes is noticed, or nothing follows from it.
    mask.logical_not_()
    try:
        again = torch.autograd.grad(y, inputs, randn(*y.shape, seed=5).to(y))
    except RuntimeError as error:
        assert re.search("modified( by an)? inplace", str(error))
        return
    for one, other in zip(again, first, strict=True):
        assert torch.equal(one, other)


def test_derivatives_are_those_of_the_reference_and_state_is_saved(case):
    run, impl, inputs = case
    mask = masked(tokens(inputs))
    got = list(results(partial(run, impl=impl), inputs, mask.clone()))
    want = list(results(partial(run, impl="reference"), doubled(inputs), mask))
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1e-5)


@pytest.mark.parametrize("name", ["local", "spectral"])
def test_gradients_of_samples_are_those_of_the_reference(name):
    run, impl, inputs = make(name)
    inputs = [x.detach() for x in inputs]

    def gradients(impl, inputs):
        def loss(x):
            return run(x, *inputs[1:], impl=impl).square().sum()

        return torch.vmap(torch.func.grad(loss))(torch.stack([inputs[0], 2 * inputs[0]]))

    want = gradients("reference", [x.double() for x in inputs])
    assert_close(gradients(impl, inputs), want, 1e-5)

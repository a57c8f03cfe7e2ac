"""A derivative is right or refused: of second order, in forward mode, and under ``torch.func``.

And state that backward needs is saved, not held: a change in place is noticed, or does not matter.
"""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import flashmix
from flashmix.errors import ImplementationError
from helpers import (
    OPS,
    assert_close,
    by_reference,
    each_impl,
    each_mixer,
    make_mixer,
    randn,
    skip_unless_runs,
)

pytestmark = pytest.mark.usefixtures("small_blocks")

each_masking = pytest.mark.parametrize("masked", [False, True])
# PyTorch's fused attention has no second derivative.
FUSED = ("attention", "local_attention", "block_topk_attention")


def make_mask(masked, device, batch=2):
    """Holes, and a sequence with padding at its end."""
    rows = [[True, False, True, True, False, True], [True] * 3 + [False] * 3]
    return torch.tensor(rows * (batch // 2), device=device) if masked else None


def make_inputs(case, impl, device, dtype=torch.float64):
    skip_unless_runs(case.operator, impl, dtype, device)
    tokens, parameters = case.inputs(2, 6, 4, dtype=dtype, device=device)
    return [x.requires_grad_() for x in (*tokens, *parameters)]


def detached(inputs):
    return [x.detach() for x in inputs]


def bind(case, impl, mask):
    return lambda *inputs: case.run(*inputs, mask=mask, impl=impl)


def tangents_of(inputs):
    return [randn(*x.shape, seed=9 + i).to(x) for i, x in enumerate(inputs)]


def second(run, inputs):
    """The derivative of the gradient along a direction; the gradient that comes in is constant."""
    y = run(*inputs)
    first = torch.autograd.grad(y, inputs, randn(*y.shape, seed=5).to(y), create_graph=True)
    total = sum((g * t).sum() for g, t in zip(first, tangents_of(inputs), strict=True))
    total = total + sum(0 * x.sum() for x in inputs)  # what is linear has no second derivative
    return torch.autograd.grad(total, inputs)


def refused(case, impl, error):
    """Whether it is a fused kernel that was asked, and the error says where to go."""
    if case.operator not in FUSED or impl != "torch":
        return False
    return type(error) is ImplementationError and "impl='reference'" in str(error)


@each_impl()
@each_masking
def test_second_derivatives_are_those_of_the_reference_or_refused(case, impl, masked, device):
    inputs = make_inputs(case, impl, device)
    mask = make_mask(masked, device)
    want = second(bind(case, "reference", mask), inputs)
    try:
        got = second(bind(case, impl, mask), inputs)
    except RuntimeError as error:
        assert refused(case, impl, error)
        return
    for one, other in zip(got, want, strict=True):
        assert_close(one, other)


TWICE = [c for c in OPS if c.name in ("fnet", "spectral", "spectral-causal", "fourier", "topk")]
TWICE += [c for c in OPS if c.name in ("local", "block-causal", "spectral-unitary")]


@each_impl(TWICE, without=("reference",))
def test_second_derivatives_are_those_of_finite_differences(case, impl, device):
    inputs = make_inputs(case, impl, device)
    if case.operator in FUSED and impl == "torch":
        pytest.skip("PyTorch's fused attention has none")
    assert gradgradcheck(bind(case, impl, make_mask(True, device)), inputs, fast_mode=True)


@each_impl()
@each_masking
def test_tangents_are_those_of_finite_differences(case, impl, masked, device):
    inputs = make_inputs(case, impl, device)
    run = bind(case, impl, make_mask(masked, device))
    assert gradcheck(run, inputs, check_forward_ad=True, check_backward_ad=False, fast_mode=True)


@each_impl(without=("reference",))
def test_transforms_of_torch_func_are_those_of_the_reference(case, impl, device):
    inputs = detached(make_inputs(case, impl, device))
    mask = make_mask(True, device)
    several = torch.stack([inputs[0], inputs[0] + 1, inputs[0] * 2])
    tangents = tuple(tangents_of(inputs))

    def results(impl):
        run = bind(case, impl, mask)

        def loss(*inputs):
            return run(*inputs).square().sum()

        every = tuple(range(len(inputs)))
        yield from torch.func.grad(loss, every)(*inputs)
        yield from torch.func.jacrev(run, every)(*inputs)
        yield torch.func.jacfwd(run)(*inputs)
        yield torch.func.jvp(run, tuple(inputs), tangents)[1]
        yield torch.func.jvp(torch.func.grad(loss), tuple(inputs), tangents)[1]
        with forward_ad.dual_level():
            y = run(*map(forward_ad.make_dual, inputs, tangents))
            yield forward_ad.unpack_dual(y).tangent

    for one, other in zip(list(results(impl)), list(results("reference")), strict=True):
        assert_close(one, other)
    # As many samples one after the other.
    run = bind(case, impl, mask)
    mapped = torch.vmap(lambda x: run(x, *inputs[1:]))
    want = torch.stack([run(x, *inputs[1:]) for x in several])
    assert_close(mapped(several), want)
    upstream = randn(*want.shape).to(want)
    (got,) = torch.func.vjp(mapped, several)[1](upstream)
    x = several.clone().requires_grad_()
    every = torch.stack([run(one, *inputs[1:]) for one in x])
    assert_close(got, torch.autograd.grad(every, x, upstream)[0])


@each_impl(without=("reference",))
def test_gradients_of_each_sample_are_those_of_the_sample_alone(case, impl, device):
    tokens = len(case.inputs(2, 6, 4)[0])
    inputs = detached(make_inputs(case, impl, device))
    masks = make_mask(True, device)

    def loss(*arguments):
        *given, mask = arguments
        given = [x[None] for x in given[:tokens]] + given[tokens:]
        return case.run(*given, mask=mask[None], impl=impl).square().sum()

    def one(k, run):
        return run(*(x[k] for x in inputs[:tokens]), *inputs[tokens:], masks[k])

    gradients = torch.func.grad(loss, tuple(range(len(inputs))))
    in_dims = (*[0] * tokens, *[None] * (len(inputs) - tokens), 0)
    got = torch.vmap(gradients, in_dims)(*inputs, masks)
    want = zip(*(one(k, gradients) for k in range(2)), strict=True)
    for mine, other in zip(got, want, strict=True):
        assert_close(mine, torch.stack(other))


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_tangents_refuse_masks_that_vmap_maps(impl):
    masks, (x, tangent) = make_mask(True, "cpu")[:, None], randn(2, 1, 6, 4)

    def tangents(mask):
        run = lambda x: flashmix.ops.fnet(x, mask=mask, impl=impl)  # noqa: E731
        return torch.func.jvp(run, (x,), (tangent,))[1]

    with pytest.raises(ImplementationError, match="loop over the samples"):
        torch.vmap(tangents)(masks)


@each_impl()
def test_a_parameter_of_each_sample_is_its_own(case, impl, device):
    tokens = len(case.inputs(2, 6, 4)[0])
    inputs = detached(make_inputs(case, impl, device))
    if len(inputs) == tokens:
        pytest.skip("has no parameters")
    several = [torch.stack([x, 2 * x]) for x in inputs[tokens:]]
    run = bind(case, impl, make_mask(True, device))
    got = torch.vmap(lambda *parameters: run(*inputs[:tokens], *parameters))(*several)
    want = [run(*inputs[:tokens], *(x[k] for x in several)) for k in range(2)]
    assert_close(got, torch.stack(want))


@each_impl()
@pytest.mark.parametrize("changed", ["mask", "tokens", "parameters"])
def test_backward_notices_a_change_in_place_or_does_not_need_the_value(case, impl, changed, device):
    inputs = make_inputs(case, impl, device)
    tokens = len(case.inputs(2, 6, 4)[0])
    mask = make_mask(True, device)
    y = bind(case, impl, mask)(*inputs)
    upstream = randn(*y.shape).to(y)
    want = torch.autograd.grad(y, inputs, upstream, retain_graph=True)
    with torch.no_grad():
        if changed == "mask":
            mask[0, 3:] = False
        for x in {"tokens": inputs[:tokens], "parameters": inputs[tokens:]}.get(changed, ()):
            x.add_(1)
    try:
        got = torch.autograd.grad(y, inputs, upstream)
    except RuntimeError as error:
        assert re.search("modified( by an)? inplace", str(error))
        return
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@each_impl(without=("reference",))
def test_second_derivatives_of_half_precision_are_near(case, impl, device):
    inputs = make_inputs(case, impl, device, torch.bfloat16)
    mask = make_mask(True, device)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    try:
        got = second(bind(case, impl, mask), inputs)
    except RuntimeError as error:
        assert refused(case, impl, error)
        return
    # A handful of roundings of 2**-9 each: of outputs, gradients, and what is summed of them.
    for one, other in zip(got, second(bind(case, "reference", mask), exact), strict=True):
        assert one.dtype == torch.bfloat16
        assert_close(one.double(), other, 8 * 2**-8)


@each_mixer
def test_mixers_have_the_derivatives_of_their_formulas(text, device):
    mixer = make_mixer(text, device=device)
    x, tangent = randn(2, 2, 6, 8, device=device)
    mask = make_mask(True, device)

    def tangents():
        return torch.func.jvp(lambda x: mixer(x, mask), (x,), (tangent,))[1]

    def penalty():
        leaf = x.clone().requires_grad_()
        y = mixer(leaf, mask)
        (first,) = torch.autograd.grad(y.sin().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [leaf, *mixer.parameters()])

    got = [tangents()]
    try:
        got += penalty()
    except RuntimeError as error:
        assert type(error) is ImplementationError
        assert "attention" in str(error) and "impl='reference'" in str(error)
    by_reference(mixer)
    for one, other in zip(got, [tangents(), *penalty()], strict=False):
        assert_close(one, other)


def test_a_swapped_model_has_the_derivatives_of_its_formulas():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8, "num_hidden_layers": 4}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, initializer_range=0.3)
    model = transformers.BertModel(config).double().eval()
    flashmix.swap(model, "fnet,local(window=3),spectral(modes=3),topk(topk=3)")
    x, tangent = randn(2, 2, 6, 8)
    mask = make_mask(True, "cpu").long()

    def run(x):
        return model(inputs_embeds=x, attention_mask=mask).last_hidden_state

    def results():
        yield torch.func.jvp(run, (x,), (tangent,))[1]
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(run(leaf).sin().sum(), leaf, create_graph=True)
        yield torch.autograd.grad(first.square().sum(), leaf)[0]

    got = list(results())
    by_reference(model)
    for one, other in zip(got, list(results()), strict=True):
        assert_close(one, other)


@cache
def exported(name):
    mixer = make_mixer(name).requires_grad_(False)
    return mixer, torch.export.export(mixer, (randn(2, 6, 8),)).module()


@pytest.mark.parametrize("name", ["fnet", "topk(topk=3)"])
def test_an_exported_graph_has_gradients_whoever_exported_it(name):
    mixer, graph = exported(name)
    x = randn(2, 6, 8, seed=1).requires_grad_()
    got, want = (torch.autograd.grad(one(x).square().sum(), x)[0] for one in (graph, mixer))
    assert_close(got, want)


@pytest.mark.parametrize("name", ["fnet", "topk(topk=3)"])
def test_an_exported_graph_refuses_tangents_that_a_kernel_would_lose(name):
    _, graph = exported(name)
    x = randn(2, 6, 8)
    with pytest.raises(ImplementationError, match="impl='reference'"):
        torch.func.jvp(graph, (x,), (x,))
    with pytest.raises(ImplementationError, match="impl='reference'"), forward_ad.dual_level():
        graph(forward_ad.make_dual(x, x))
    with pytest.raises(ImplementationError, match="impl='reference'"):
        torch.func.grad(lambda x: graph(x).sum())(x)

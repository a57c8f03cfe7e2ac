"""How a tensor lies in memory changes no result: inputs, masks, weights, upstream gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashmix import ops
from flashmix.errors import ArgumentError, ImplementationError
from flashmix.ops._cpu import library
from flashmix.ops._cpu.heads import strides
from helpers import (
    assert_close,
    each_impl,
    each_mixer,
    make_mixer,
    randn,
    skip_unless_runs,
)
from layouts import FIXED, TRANSPOSED, PromisedLayouts, layouts, spread
from test_registration import SAMPLES

pytestmark = pytest.mark.usefixtures("small_blocks")

MASKS = [
    None,
    (torch.arange(13)[:, None] < torch.tensor([13, 5, 0])).T,  # as sequence-first code makes it
    randn(3, 13, seed=3) > 0,
]


def outputs(run, leaves, upstream, mask):
    """Output and gradients of ``run(*leaves, mask=)``."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    y = run(*leaves, mask=mask)
    grads = torch.autograd.grad(y, leaves, upstream, allow_unused=True, materialize_grads=True)
    return [y, *grads]


def check(run, leaves, upstream, mask, lay):
    """``lay(x)`` in place of every tensor gives what contiguous ones give."""
    plain = None if mask is None else mask.contiguous()
    want = outputs(run, [x.contiguous() for x in leaves], upstream.contiguous(), plain)
    got = outputs(run, [lay(x) for x in leaves], lay(upstream), None if mask is None else lay(mask))
    # Together: a gradient that is zero by the formula has no scale of its own.
    assert_close(*(torch.cat([x.flatten() for x in some]) for some in (got, want)))


@each_impl()
@settings(max_examples=6)
@given(layout=layouts(), mask=st.sampled_from(MASKS))
def test_no_layout_changes_an_op(case, impl, device, layout, mask):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    tokens, parameters = case.inputs(3, 13, device=device)
    upstream = randn(*tokens[0].shape, seed=9, device=device)
    mask = None if mask is None else mask.to(device)
    run = lambda *x, mask: case.run(*x, mask=mask, impl=impl)  # noqa: E731
    check(run, [*tokens, *parameters], upstream, mask, layout.of)


@each_impl()
@settings(max_examples=5)
@given(axes=st.sets(st.integers(0, 3), min_size=1).map(tuple), mask=st.sampled_from(MASKS))
def test_no_stride_of_zero_changes_an_op(case, impl, device, axes, mask):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    tokens, parameters = case.inputs(3, 13, device=device)
    # Top-k of equal scores is decided by roundings, so of attentions only values are expanded.
    tokens[-1] = spread(tokens[-1], axes)
    parameters = [spread(x, axes) for x in parameters]
    upstream = spread(randn(*tokens[0].shape, seed=9, device=device), axes)
    mask = None if mask is None else spread(mask.to(device), axes)
    run = lambda *x, mask: case.run(*x, mask=mask, impl=impl)  # noqa: E731
    check(run, [*tokens, *parameters], upstream, mask, lambda x: x)


@each_impl()
@pytest.mark.parametrize("masked", [False, True])
def test_results_have_the_strides_that_fake_kernels_promise(case, impl, device, masked):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    tokens, parameters = case.inputs(3, 13, device=device)
    leaves = [TRANSPOSED.of(x) for x in (*tokens, *parameters)]
    upstream = TRANSPOSED.of(randn(*tokens[0].shape, seed=9, device=device))
    mask = MASKS[1].to(device) if masked else None
    with PromisedLayouts():
        outputs(lambda *x, mask: case.run(*x, mask=mask, impl=impl), leaves, upstream, mask)


@each_mixer
@pytest.mark.parametrize("layout", FIXED)
def test_no_layout_changes_a_mixer(text, layout, device):
    mixer = make_mixer(text, device=device)
    names = [name for name, _ in mixer.named_parameters()]

    def run(x: Tensor, *parameters: Tensor, mask: Tensor | None) -> Tensor:
        held = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(mixer, held, (x, mask))

    leaves = [randn(3, 13, 8, device=device), *mixer.parameters()]
    for mask in MASKS:
        mask = None if mask is None else mask.to(device)
        check(run, leaves, randn(3, 13, 8, seed=9, device=device), mask, FIXED[layout].of)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_layout_changes_what_a_registered_op_returns(name, device):
    """Backward ops among them, whose saved tensors a compiler may hand over in any layout."""
    if "_cpu" in name and (device != "cpu" or library.missing()):
        pytest.skip(library.missing() or "native kernels run on the CPU")
    op = getattr(torch.ops.flashmix, name).default
    mask = MASKS[2][:2, :9].contiguous().to(device)
    with torch.no_grad():
        for sample in SAMPLES[name](device, mask):
            want = op(*sample)
            for layout in FIXED.values():
                got = op(*(layout.of(x) if isinstance(x, Tensor) else x for x in sample))
                pairs = [(got, want)] if isinstance(got, Tensor) else zip(got, want, strict=True)
                for one, other in pairs:
                    assert_close(one, other, 1e-5)


@pytest.mark.parametrize("impl", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("lazy", ["conjugate", "negative"])
def test_lazy_bits_of_a_complex_weight_count(impl, lazy, device):
    skip_unless_runs("spectral", impl, torch.float64, device)
    x, re, im = randn(2, 9, 6, device=device), *randn(2, 4, 6, seed=1, device=device)
    weight = torch.complex(re, im)
    bits = weight.conj() if lazy == "conjugate" else torch._neg_view(weight)
    assert bits.is_conj() or bits.is_neg()
    want = ops.spectral(x, bits.resolve_conj().resolve_neg().clone(), impl=impl)
    assert_close(ops.spectral(x, bits, impl=impl), want)


def test_kernels_refuse_what_they_would_misread():
    x = TRANSPOSED.of(randn(2, 3, 4, 5))
    with pytest.raises(AssertionError, match="misread"):
        library.address(x)
    with pytest.raises(AssertionError, match="misread"):
        strides(x)


def nested(layout):
    return torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)], layout=layout)


ODD = {
    "nested": (lambda x: nested(torch.strided), "one padded tensor, got a nested tensor"),
    "jagged": (lambda x: nested(torch.jagged), "one padded tensor, got a nested tensor"),
    "sparse": (lambda x: x.to_sparse(), "dense tensor, got layout torch.sparse_coo"),
    "mkldnn": (lambda x: x.to_mkldnn(), "dense tensor, got layout torch._mkldnn"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), "quint8"),
    "meta": (lambda x: x.to("meta"), "meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_another_kind_are_refused_in_a_sentence(kind):
    make, said = ODD[kind]
    x, q, weight = torch.ones(2, 3, 4), torch.ones(2, 2, 3, 2), torch.ones(2, 4, 2)
    calls = [
        lambda: ops.fnet(make(x)),
        lambda: ops.spectral(make(x), weight),
        lambda: ops.spectral(x, make(weight)),
        lambda: ops.spectral(x, weight, make(torch.ones(4))),
        lambda: ops.fourier(make(q)),
        lambda: ops.attention(make(q), q, q),
        lambda: ops.local_attention(q, make(q), q, window=2),
        lambda: ops.topk_attention(q, q, make(q), topk=2),
    ]
    for call in calls:
        with pytest.raises((ArgumentError, ImplementationError), match=said):
            call()


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_masks_of_another_kind_are_refused_in_a_sentence(kind):
    make, said = ODD[kind]
    mask = make(torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ArgumentError, match=said):
        ops.fnet(torch.ones(2, 3, 4), mask=mask)

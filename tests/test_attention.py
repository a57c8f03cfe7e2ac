"""Full attention: PyTorch's SDPA, weights that sum to one, and no silent fallback."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from flashmix import ops
from flashmix.errors import ImplementationError
from helpers import OPS, assert_close, each_impl, make_mixer, randn, skip_unless_runs

each_attention_impl = each_impl([case for case in OPS if case.name == "attention"])


@each_attention_impl
@pytest.mark.parametrize("causal", [False, True])
@given(n=st.integers(1, 20), width=st.integers(1, 9))
def test_equals_scaled_dot_product_attention(case, impl, device, causal, n, width):
    skip_unless_runs("attention", impl, torch.float64, device)
    qkv = [x.requires_grad_() for x in randn(3, 2, 3, n, width, device=device).unbind(0)]
    upstream = randn(2, 3, n, width, seed=1, device=device)
    y = ops.attention(*qkv, causal=causal, impl=impl)
    want = F.scaled_dot_product_attention(*qkv, is_causal=causal)
    assert_close(y, want)
    # In one norm: the gradients of q and k are exactly zero where there is one key.
    got, expected = (torch.stack(torch.autograd.grad(out, qkv, upstream)) for out in (y, want))
    assert_close(got, expected)


@pytest.mark.parametrize(("alias", "name"), [("sdpa", "torch"), ("naive", "reference")])
def test_aliases_name_their_implementation(alias, name, device):
    qkv = randn(3, 2, 3, 7, 4, dtype=torch.float32, device=device)
    assert torch.equal(ops.attention(*qkv, impl=alias), ops.attention(*qkv, impl=name))


def test_mixer_is_the_op_between_its_projections(device):
    mixer = make_mixer("attention", 12, num_heads=3, device=device)
    x = randn(2, 7, 12, device=device)
    q, k, v = (part.view(2, 7, 3, 4).transpose(1, 2) for part in mixer.qkv(x).chunk(3, dim=-1))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 7, 12)
    assert_close(mixer(x), mixer.out(mixed))


WITH_WEIGHTS = ["attention", "local(window=3)", "topk(topk=3)", "topk(topk=2, selection=block)"]


@pytest.mark.parametrize("text", WITH_WEIGHTS)
@pytest.mark.parametrize("causal", [False, True])
def test_weights_sum_to_one_and_give_the_output(text, causal, device):
    mixer = make_mixer(text, 12, num_heads=3, causal=causal, device=device)
    x = randn(2, 9, 12, device=device)
    y, weights = mixer(x, return_weights=True)
    assert weights.shape == (2, 3, 9, 9)
    assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    assert (weights >= 0).all()
    assert not (causal and weights.triu(1).any())
    v = mixer.qkv(x)[..., 24:].view(2, 9, 3, 4).transpose(1, 2)
    assert_close(mixer.out((weights @ v).transpose(1, 2).reshape(2, 9, 12)), y)
    assert_close(mixer(x), y)


@pytest.mark.parametrize(
    ("text", "impl"), [("attention", "sdpa"), *((text, "torch") for text in WITH_WEIGHTS)]
)
def test_an_impl_without_weights_refuses_to_return_them(text, impl):
    mixer = make_mixer(text, impl=impl)
    with pytest.raises(ImplementationError, match="return_weights"):
        mixer(randn(1, 4, 8), return_weights=True)


@pytest.mark.parametrize("impl", ["auto", "naive", "reference"])
def test_the_naive_impl_returns_its_weights(impl):
    mixer = make_mixer("attention", impl=impl)
    _, weights = mixer(randn(1, 4, 8), return_weights=True)
    assert weights.shape == (1, 2, 4, 4)

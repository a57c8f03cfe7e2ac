"""What every mixer keeps: any size and dtype, the same bits twice, its state, its parameters."""

from __future__ import annotations

import copy
from typing import Literal, get_overloads, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flashmix import create_mixer, ops
from flashmix.errors import ArgumentError
from flashmix.mixers import FourierAttention, parse_mixer
from flashmix.mixers._base import QKVMixer, WeighingMixer
from helpers import DTYPES, assert_close, each_mixer, fresh_mixer, make_mixer, randn, right_padding


@each_mixer
@given(n=st.integers(1, 40), heads=st.sampled_from([2, 4]), width=st.integers(1, 9))
def test_runs_at_any_length_and_width(text, device, n, heads, width):
    dim = heads * width
    mixer = make_mixer(text, dim, num_heads=heads, dtype=torch.float32, device=device)
    x = randn(2, n, dim, dtype=torch.float32, device=device).requires_grad_()
    y = mixer(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@each_mixer
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_gives_back_the_input_dtype(text, dtype, masked, device):
    mixer = make_mixer(text, dtype=dtype, device=device)
    x = randn(2, 7, 8, dtype=dtype, device=device).requires_grad_()
    y = mixer(x, right_padding(2, 7, device=device) if masked else None)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert y.isfinite().all()


@each_mixer
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch", [0, 2])
def test_input_of_any_strides_gives_the_same(text, masked, batch, device):
    mixer = make_mixer(text, device=device)
    x = randn(batch, 8, 9, device=device).transpose(1, 2)
    mask = right_padding(batch, 9, device=device) if masked else None
    torch.testing.assert_close(mixer(x, mask), mixer(x.contiguous(), mask))


@each_mixer
@pytest.mark.parametrize("masked", [False, True])
def test_empty_batch_gives_an_empty_result(text, masked, device):
    mixer = make_mixer(text, device=device)
    x = torch.empty(0, 7, 8, dtype=torch.float64, device=device, requires_grad=True)
    y = mixer(x, torch.ones(0, 7, dtype=torch.bool, device=device) if masked else None)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 7, 8)
    assert all(p.grad is None or not p.grad.any() for p in mixer.parameters())


@pytest.mark.parametrize(
    ("name", "op", "options"),
    [
        ("attention", ops.attention, {"causal": True}),
        ("local", ops.local_attention, {"window": 4}),
        ("local", ops.local_attention, {"window": 4, "causal": True}),
        ("topk", ops.topk_attention, {"topk": 3}),
        ("topk", ops.topk_attention, {"topk": 3, "causal": True}),
        ("topk", ops.topk_attention, {"topk": 3, "selection": "block"}),
    ],
)
def test_mixer_is_the_op_with_its_options_between_projections(name, op, options, device):
    mixer = make_mixer(name, 12, num_heads=3, device=device, **options)
    x = randn(2, 90, 12, device=device)
    mask = right_padding(2, 90, device=device)
    q, k, v = (part.view(2, 90, 3, 4).transpose(1, 2) for part in mixer.qkv(x).chunk(3, dim=-1))
    mixed = op(q, k, v, mask=mask, **options).transpose(1, 2).reshape(2, 90, 12)
    assert_close(mixer(x, mask), mixer.out(mixed) * mask[..., None])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "attention(causal=True)",
        "attention(impl=naive)",
        "local(window=5)",
        "local(window=4, causal=True, impl=torch)",
        "topk(topk=3)",
        "topk(topk=3, impl=reference)",
        "topk(topk=70, selection=block)",
    ],
)
def test_heads_of_k_and_v_are_shared_by_neighbouring_heads_of_q(text, masked, device):
    options = parse_mixer(text).options
    grouped = make_mixer(text, 12, num_heads=6, num_kv_heads=2, device=device)
    whole = make_mixer(parse_mixer(text).name, 12, num_heads=6, device=device, **options)
    assert grouped.qkv.weight.shape == (12 + 2 * 4, 12)

    def spread(rows):
        """Rows of q, k and v with each head of k and v three times."""
        q, k, v = rows.split([12, 4, 4])
        return torch.cat(
            (q, *(x.unflatten(0, (2, 2)).repeat_interleave(3, 0).flatten(0, 1) for x in (k, v)))
        )

    state = {
        name: spread(x) if name.startswith("qkv") else x for name, x in grouped.state_dict().items()
    }
    whole.load_state_dict(state)
    x = randn(2, 90, 12, device=device).requires_grad_()
    mask = right_padding(2, 90, device=device) if masked else None
    y, want = grouped(x, mask), whole(x, mask)
    assert_close(y, want)
    grads = torch.autograd.grad(y.square().sum(), [x, grouped.qkv.weight])
    wants = torch.autograd.grad(want.square().sum(), [x, whole.qkv.weight])
    assert_close(grads[0], wants[0])
    q, k, v = wants[1].split(12)
    summed = [x.unflatten(0, (2, 3, 2)).sum(1).flatten(0, 1) for x in (k, v)]
    assert_close(grads[1], torch.cat((q, *summed)))
    if "torch" not in text:
        weighed = grouped(x, mask, return_weights=True), whole(x, mask, return_weights=True)
        for got, want in zip(*weighed, strict=True):
            assert_close(got, want)


@pytest.mark.parametrize("name", ["attention", "local", "topk"])
@pytest.mark.parametrize("count", [0, 4, 3.0, True])
def test_heads_of_k_and_v_divide_those_of_q(name, count):
    with pytest.raises(ArgumentError, match=f"num_kv_heads must .* got {count!r}"):
        create_mixer(name, 12, num_heads=6, num_kv_heads=count)


@pytest.mark.parametrize("kind", [QKVMixer, FourierAttention])
def test_a_call_with_weights_is_typed_as_a_pair(kind):
    assert issubclass(kind, WeighingMixer)
    hints = [get_type_hints(one) for one in get_overloads(WeighingMixer.forward)]
    returned = {hint["return_weights"]: hint["return"] for hint in hints}
    assert returned == {
        Literal[False]: Tensor,
        Literal[True]: tuple[Tensor, Tensor],
        bool: Tensor | tuple[Tensor, Tensor],
    }


def bits(mixer, device):
    x = randn(2, 150, 8, dtype=torch.float32, device=device).requires_grad_()
    mask = randn(2, 150, seed=1, device=device) > -1
    outputs = []
    for given_mask in (None, mask):
        y = mixer(x, given_mask)
        outputs += [y, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])]
    return outputs


@each_mixer
def test_two_runs_give_the_same_bits(text, device, unpoisoned_memory):
    mixer = make_mixer(text, dtype=torch.float32, device=device)
    first, second = bits(mixer, device), bits(mixer, device)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_mixer
def test_state_dict_carries_everything(text, device):
    trained, fresh = make_mixer(text, device=device), fresh_mixer(text)
    fresh.to(device, torch.float64).load_state_dict(trained.state_dict(), strict=True)
    x = randn(2, 9, 8, device=device)
    assert torch.equal(fresh(x), trained(x))


@each_mixer
def test_deepcopy_is_equal_and_apart(text, device):
    mixer = make_mixer(text, device=device)
    x = randn(2, 9, 8, device=device)
    want = mixer(x)
    twin = copy.deepcopy(mixer)
    assert torch.equal(twin(x), want)
    for parameter in twin.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(mixer(x), want)


@pytest.mark.parametrize(
    ("text", "dim", "count"),
    [
        ("attention", 256, 263_168),
        ("attention(bias=False)", 64, 16_384),
        ("local", 256, 263_168),
        ("local(bias=False)", 64, 16_384),
        ("topk", 256, 263_168),
        ("topk(selection=block)", 256, 263_168),
        ("topk(bias=False)", 64, 16_384),
        ("fnet", 256, 0),
        ("spectral", 256, 65_792),
        ("spectral(causal=True)", 256, 65_792),
        ("spectral(unitary=True)", 256, 256 * 128),
        ("fourier(num_heads=8)", 64, 8_320),
        ("hybrid", 256, 263_168 + 65_792),
        ("spectral+local+fnet", 256, 263_168 + 65_792),
        ("hybrid(combine=gate)", 256, 263_168 + 65_792 + 2 * 256),
        ("hybrid(combine=heads)", 256, (4 * 128 * 128 + 4 * 128) + (2 * 128 * 64 + 128)),
    ],
)
def test_parameter_count(text, dim, count):
    assert sum(p.numel() for p in create_mixer(text, dim).parameters()) == count

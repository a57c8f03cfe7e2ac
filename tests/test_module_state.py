"""Mixers and models as modules: made without memory, copied, stored, in other dtypes and modes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from flashmix import create_mixer
from flashmix.errors import ArgumentError
from flashmix.models import Block, Encoder, SequenceClassifier, TextClassifier
from helpers import (
    MIXERS,
    each_mixer,
    fresh_mixer,
    make_mixer,
    randn,
    relative_error,
    right_padding,
)

MODELS = {
    "Block": lambda: Block(8, "spectral+local", num_heads=2),
    "Encoder": lambda: Encoder(8, 4, "fnet,attention,hybrid(combine=gate),fourier", num_heads=2),
    "SequenceClassifier": lambda: SequenceClassifier(8, 9, 3, dim=8, mixers="spectral,local"),
    "TextClassifier": lambda: TextClassifier(11, 9, 3, dim=8, mixers="topk,fourier"),
}
MAKERS = {text: lambda text=text: fresh_mixer(text) for text in MIXERS} | MODELS
each_module = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def inputs(module):
    tokens = isinstance(module, TextClassifier)
    x = torch.arange(18).view(2, 9) % 11 if tokens else randn(2, 9, 8, dtype=torch.float32)
    return x, right_padding(2, 9)


def randomised(make):
    module = make()
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed, dtype=torch.float32) * 0.3
    return module


def same(one, other):
    return torch.equal(one(*inputs(one)), other(*inputs(other)))


@each_module
def test_values_come_after_a_start_on_the_meta_device(make):
    with torch.device("meta"):
        module = make()
    assert all(p.is_meta for p in module.parameters())
    module.to_empty(device="cpu")  # memory is poisoned with NaN here
    for part in module.modules():
        if next(part.parameters(recurse=False), None) is not None:
            part.reset_parameters()
    made = dict(make().named_parameters())
    for name, value in module.named_parameters():
        assert value.isfinite().all(), name
        if made[name].unique().numel() <= 2:  # a start without chance
            assert torch.equal(value, made[name]), name
        else:
            assert value.abs().max() < 2 * max(made[name].abs().max(), 0.3), name
    assert module(*inputs(module)).isfinite().all()


@pytest.mark.parametrize(("kind", "std"), [(SequenceClassifier, 0.3), (TextClassifier, 0.02)])
def test_positions_start_with_their_standard_deviation(kind, std):
    torch.manual_seed(0)
    model = kind(9, 500, 3, dim=16)
    for _ in range(2):
        assert model.position.std().item() == pytest.approx(std, rel=0.05)
        nn.init.zeros_(model.position)
        model.reset_parameters()


@pytest.mark.parametrize("way", ["fsdp", "heads"])
def test_values_come_after_sharding(way, ranks_pool):
    texts = ["attention", "fourier", "spectral", "spectral(unitary=True)", "hybrid(combine=gate)"]
    answers = ranks_pool.run("module_cases.starts_of_meta", texts, way)
    for starts in answers[:2]:
        assert starts["spectral: weight"] == (0, 1)
        assert starts["spectral: bias"] == starts["spectral(unitary=True): phase"] == (0, 0)
        assert starts["hybrid(combine=gate): gate"] == (0, 0)
        for name in ("attention: qkv.weight", "attention: qkv.bias", "fourier: value.weight"):
            least, most = starts[name]
            assert -0.25 <= least < -0.1 < 0.1 < most <= 0.25


@each_module
def test_copies_and_pickles_are_equal(make):
    module = randomised(make)
    assert same(copy.deepcopy(module), module)
    assert same(pickle.loads(pickle.dumps(module)), module)


@each_module
def test_a_state_dict_is_tensors_alone(make):
    module, file = randomised(make), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = make()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert same(fresh, module)


@each_module
def test_inference_mode_leaves_nothing_that_training_trips_over(make):
    module = randomised(make)
    x, mask = inputs(module)
    with torch.inference_mode():
        first = module(x, mask)
    second = module(x, mask)
    if any(p.requires_grad for p in module.parameters()):
        second.sum().backward()
    assert relative_error(second, first.clone()) < 1e-6


@each_module
def test_every_op_is_deterministic(make):
    module = randomised(make)
    x, mask = inputs(module)
    torch.use_deterministic_algorithms(True)
    try:
        y = module(x.requires_grad_() if x.is_floating_point() else x, mask)
        y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


@each_module
def test_autocast_gives_bfloat16_or_float32_and_gradients_of_the_parameters_dtype(make):
    module = randomised(make)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(*inputs(module))
    assert y.dtype in (torch.bfloat16, torch.float32)
    assert relative_error(y, module(*inputs(module))) < 0.05
    if y.requires_grad:
        y.sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in module.parameters())


@each_mixer
def test_half_parameters_give_what_float_ones_do(text):
    mixer = make_mixer(text, dtype=torch.float32)
    x, mask = inputs(mixer)
    y = copy.deepcopy(mixer).half()(x.half(), mask)
    assert y.dtype == torch.float16
    assert relative_error(y, mixer(x, mask)) < 0.02


@each_mixer
def test_the_default_dtype_and_device_are_those_of_parameters_alone(text):
    try:
        torch.set_default_dtype(torch.float64)
        mixer = fresh_mixer(text)
        wide = mixer(randn(2, 9, 8))
        narrow = mixer.float()(randn(2, 9, 8, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32)
    assert relative_error(narrow, wide) < 1e-5
    # A length that was not seen before: what is kept for it must be where the tokens are.
    x, mask = randn(2, 23, 8, dtype=torch.float32), right_padding(2, 23)
    with torch.device("meta"):
        elsewhere = mixer(x, mask)
    assert relative_error(elsewhere, mixer(x, mask)) < 1e-6


@each_module
def test_no_sequence_gives_no_result(make):
    module = randomised(make)
    x, mask = inputs(module)
    y = module(x[:0], mask[:0])
    y.sum().backward() if y.requires_grad else None
    assert y.shape == module(x, mask)[:0].shape


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_filters_of_the_mixer_are_refused():
    with pytest.raises(ArgumentError, match=r"complex weight must be \[M, D\], got \[4, 8, 2\]"):
        create_mixer("spectral", 8).to(torch.complex64)(randn(2, 9, 8, dtype=torch.float32))

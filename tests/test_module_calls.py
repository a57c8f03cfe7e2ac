"""Every mixing goes through a module's call, so that the hooks of offloading and sharding run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from flashmix.mixers import Mixer
from flashmix.models import Encoder, SequenceClassifier, TextClassifier
from helpers import FLOAT64_BUDGET, MIXERS, each_mixer, make_mixer, randn, right_padding
from parallel_models import encoder, seeded

KINDS = [text for text in MIXERS if "impl" not in text and "causal" not in text]
SWAPPED = ["spectral", "hybrid(mixers=('spectral', 'local'), combine=gate)", "fourier+spectral"]


def heads(seed):
    return randn(2, 9, 8, seed=seed).unflatten(-1, (2, 4)).transpose(1, 2)


@each_mixer
def test_hooks_of_mixers_run_whether_tokens_or_heads_are_mixed(text):
    mixer, called = make_mixer(text), []
    mixers = [module for module in mixer.modules() if isinstance(module, Mixer)]
    for module in mixers:
        module.register_forward_pre_hook(lambda module, _: called.append(module))
    mixer(randn(2, 9, 8))
    mixer.mix_heads(*map(heads, range(3)))
    assert called == mixers * 2


@each_mixer
def test_offloaded_mixers_give_the_same_bits(text):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    mixer, mask = make_mixer(text), right_padding(2, 9)
    away = accelerate.cpu_offload(copy.deepcopy(mixer), execution_device="cpu")
    assert all(p.is_meta for p in away.parameters())
    assert torch.equal(away(randn(2, 9, 8), mask), mixer(randn(2, 9, 8), mask))
    qkv = [heads(seed) for seed in range(3)]
    assert torch.equal(away.mix_heads(*qkv, mask), mixer.mix_heads(*qkv, mask))


def classifier(kind):
    if kind is TextClassifier:
        return seeded(kind, 11, 9, 3, dim=8, num_heads=2), (torch.arange(18).view(2, 9) % 11,)
    if kind is SequenceClassifier:
        return seeded(kind, 8, 9, 3, dim=8, num_heads=2), (randn(2, 9, 8),)
    return encoder(), (randn(2, 9, 8),)


@pytest.mark.parametrize("kind", [Encoder, SequenceClassifier, TextClassifier])
def test_offloaded_models_give_the_same_bits(kind):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model, x = classifier(kind)
    away = accelerate.cpu_offload(copy.deepcopy(model), execution_device="cpu")
    assert torch.equal(away(*x, right_padding(2, 9)), model(*x, right_padding(2, 9)))


@pytest.mark.parametrize("text", SWAPPED)
def test_offloaded_swapped_models_give_the_same_bits(text):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from module_cases import bert, hidden_states

    with torch.no_grad():
        away = accelerate.cpu_offload(bert(text), execution_device="cpu")
        assert torch.equal(hidden_states(away), hidden_states(bert(text)))


def check(answers):
    for errors in answers:
        assert all(error <= FLOAT64_BUDGET for error in errors.values()), errors


def test_fsdp_gathers_what_is_mixed_with(ranks_pool):
    texts = [text for text in KINDS if "fnet" not in text or "gate" in text]
    check(ranks_pool.run("module_cases.errors_of_fsdp", texts))


def test_fsdp_gathers_the_layers_of_an_encoder(ranks_pool):
    check(ranks_pool.run("module_cases.errors_of_fsdp_encoder"))


def test_fsdp_gathers_the_mixers_of_a_swapped_model(ranks_pool):
    pytest.importorskip("transformers", reason="transformers is not installed")
    check(ranks_pool.run("module_cases.errors_of_fsdp_bert", SWAPPED))


class TrainedCopy(nn.Module):
    """A module, and the copy of it that is trained and called, as PEFT's ``modules_to_save``."""

    def __init__(self, module):
        super().__init__()
        self.original_module = module.requires_grad_(False)
        self.copies = nn.ModuleDict({"default": copy.deepcopy(module).requires_grad_(True)})

    def forward(self, *args, **kwargs):
        return self.copies["default"](*args, **kwargs)


@pytest.mark.parametrize("text", [*SWAPPED, "attention"])
def test_mixers_of_a_swapped_model_may_be_wrapped(text):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from module_cases import bert, hidden_states

    plain, wrapped = bert(text), bert(text)
    for one, other in zip(plain.encoder.layer, wrapped.encoder.layer, strict=True):
        other.attention.self.mixer = TrainedCopy(other.attention.self.mixer)
        copied = other.attention.self.mixer.copies["default"]
        for mine, theirs in zip(
            one.attention.self.mixer.parameters(), copied.parameters(), strict=True
        ):
            mine.data += 0.1
            theirs.data += 0.1
    y = hidden_states(wrapped)
    assert torch.equal(y, hidden_states(plain))
    y.sum().backward()
    assert all(p.grad is not None for p in copied.parameters())


class LowRank(nn.Module):
    """A linear layer and a learned change of low rank, as LoRA has it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, base.out_features, bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

    def merged(self):
        with torch.no_grad():
            self.base.weight += self.up.weight @ self.down.weight
        return self.base


@each_mixer
def test_projections_may_be_wrapped(text):
    mixer, x, mask = make_mixer(text), randn(2, 9, 8), right_padding(2, 9)
    linear = [name for name, module in mixer.named_modules() if isinstance(module, nn.Linear)]
    for name in linear:
        mixer.set_submodule(name, LowRank(mixer.get_submodule(name)))
    y = mixer(x, mask)
    if linear:
        y.sum().backward()
        assert mixer.get_submodule(linear[0]).down.weight.grad is not None
    for name in linear:
        mixer.set_submodule(name, mixer.get_submodule(name).merged())
    torch.testing.assert_close(mixer(x, mask), y)

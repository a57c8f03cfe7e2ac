"""A mixer that is wrapped, as PEFT's ``modules_to_save=["mixer"]`` does, mixes all the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flashmix
from flashmix.errors import ArgumentError
from hf_models import MIXERS, reviews, swapped


class Wrapper(nn.Module):
    """Keeps a module and calls a trainable copy of it, as PEFT does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.original_module = module.requires_grad_(False)
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(module)})
        self.modules_to_save.requires_grad_(True)
        self.calls = 0

    def forward(self, *args, **options):
        self.calls += 1
        return self.modules_to_save["default"](*args, **options)


def wrap(model: nn.Module) -> list[Wrapper]:
    layers = [layer for layer in model.modules() if hasattr(layer, "mixer")]
    for layer in layers:
        layer.mixer = Wrapper(layer.mixer)
    return [layer.mixer for layer in layers]


@pytest.mark.parametrize("mixers", MIXERS)
def test_a_wrapped_mixer_mixes_and_learns(mixers):
    model, batch = swapped(mixers), reviews(9, 4)
    with torch.no_grad():
        want = model(**batch).logits
    wrappers = wrap(model)
    logits = model(**batch).logits
    assert torch.equal(logits, want)
    assert [wrapper.calls for wrapper in wrappers] == [1, 1]
    logits.sum().backward()
    for wrapper in wrappers:
        for parameter in wrapper.modules_to_save.parameters():
            assert parameter.grad is not None


@pytest.mark.parametrize("mixers", ["fnet", "attention", "local(window=5)"])
def test_relative_positions_reach_a_wrapped_mixer(mixers):
    model, batch = swapped(mixers, "mpnet"), reviews(9, 4)
    with torch.no_grad():
        want = model(**batch).logits
        wrap(model)
        assert torch.equal(model(**batch).logits, want)


def test_a_swap_does_not_remove_what_wraps_a_mixer():
    model = swapped("spectral(modes=3)")
    wrappers = wrap(model)
    with pytest.raises(ArgumentError, match=r"wrapped in a Wrapper.*swap first, then wrap"):
        flashmix.swap(model, "fnet")
    assert [layer.mixer for layer in model.modules() if hasattr(layer, "mixer")] == wrappers


def test_peft_trains_saves_and_merges_mixers(tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    model, batch = swapped("spectral(modes=3),fourier"), reviews(9, 4)
    options = peft.LoraConfig(target_modules=["dense"], modules_to_save=["mixer", "classifier"])
    adapted = peft.get_peft_model(model, options)
    adapted(**batch, labels=torch.tensor([0, 1])).loss.backward()
    for name, parameter in adapted.named_parameters():
        if "mixer.modules_to_save" in name:
            parameter.data -= parameter.grad
    adapted.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        want = adapted(**batch).logits
        base = swapped("spectral(modes=3),fourier")
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert torch.equal(loaded(**batch).logits, want)
        merged = adapted.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        again = flashmix.from_pretrained(tmp_path / "merged")
        assert torch.equal(again(**batch).logits, merged(**batch).logits)

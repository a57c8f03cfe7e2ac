"""The mixers of a model's layers: read as they were given, and one changed and no other."""

import pytest
import torch

import flashmix
from flashmix.errors import ArgumentError, ModelError
from flashmix.mixers import MixerSpec, parse_mixer
from flashmix.models import Encoder, SequenceClassifier, TextClassifier
from helpers import each_mixer, randn, right_padding
from hf_models import classifier, reviews, transformers

D = 16
PATTERN = ["fnet", "local(window=4)", "attention", "spectral(modes=3)"]


def ours():
    yield Encoder(D, 4, ",".join(PATTERN), num_heads=2)
    yield SequenceClassifier(3, 9, 2, dim=D, depth=4, mixers=",".join(PATTERN), num_heads=2)
    yield TextClassifier(30, 9, 2, dim=D, depth=4, mixers=",".join(PATTERN), num_heads=2)


def parsed(text):
    return parse_mixer(text).config(D, num_heads=2)


@each_mixer
def test_a_config_as_text_builds_that_config(text):
    config = parse_mixer(text).config(D, num_heads=2)
    assert parse_mixer(str(MixerSpec.from_config(config))).config(D) == config


def test_mixers_of_gives_what_each_layer_was_built_or_swapped_with():
    for model in ours():
        assert [parsed(text) for text in flashmix.mixers_of(model)] == [*map(parsed, PATTERN)]
        assert flashmix.mixers_of(model)[0] == "fnet"  # no option that is the default
    model = classifier("bert")
    assert flashmix.mixers_of(model) == ["attention", "attention"]
    flashmix.swap(model, "local(window=5),fnet")
    assert flashmix.mixers_of(model) == ["local(window=5)", "fnet"]
    assert flashmix.mixers_of(flashmix.swap(classifier("albert"), "fnet")) == ["fnet"]


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("mixer", ["fnet", "topk(topk=2)", "spectral(modes=3)+local(window=3)"])
def test_set_mixer_changes_that_layer_and_no_other(layer, mixer):
    for model in ours():
        model.double().eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert flashmix.set_mixer(model, layer, mixer) is model
        want = [*PATTERN[:layer], mixer, *PATTERN[layer + 1 :]]
        assert [parsed(text) for text in flashmix.mixers_of(model)] == [*map(parsed, want)]
        changed = f"blocks.{layer}.mixer."
        for name, value in model.state_dict().items():
            assert value.dtype == torch.float64
            if changed not in name:
                assert torch.equal(value, before.pop(name))
        assert all(changed in name for name in before)
        assert not model.get_submodule(next(model_path(model, layer))).training


def model_path(model, layer):
    return (path for path, _ in model.named_modules() if path.endswith(f"blocks.{layer}.mixer"))


def test_set_mixer_keeps_projections_that_both_mixers_have():
    model = Encoder(D, 2, "attention", num_heads=2).double()
    x, mask = randn(2, 9, D), right_padding(2, 9)
    want = model(x, mask)
    flashmix.set_mixer(model, 0, "local(window=100)")  # sees everything, as attention does
    torch.testing.assert_close(model(x, mask), want)


def test_set_mixer_of_a_transformers_model_is_a_swap_of_that_layer():
    model, other = classifier("bert"), classifier("bert")
    flashmix.swap(other, {1: "fnet"})
    assert flashmix.set_mixer(model, 1, "fnet") is model
    assert flashmix.mixers_of(model) == ["attention", "fnet"]
    batch = reviews(9, 5)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, other(**batch).logits)


def test_what_has_no_such_layer_is_refused():
    encoder = next(ours())
    for layer in (4, -1, True, "0"):
        with pytest.raises(ArgumentError, match="numbered 0 to 3"):
            flashmix.set_mixer(encoder, layer, "fnet")
        with pytest.raises(ArgumentError, match="numbered 0 to 1"):
            flashmix.set_mixer(classifier("bert"), layer if layer != 4 else 2, "fnet")
    for nothing in (torch.nn.Linear(2, 2), "bert"):
        with pytest.raises(ArgumentError, match="must be a model"):
            flashmix.mixers_of(nothing)
        with pytest.raises(ArgumentError, match="must be a model"):
            flashmix.set_mixer(nothing, 0, "fnet")
    fourier = transformers.FNetModel(
        transformers.FNetConfig(vocab_size=30, hidden_size=D, num_hidden_layers=1)
    )
    with pytest.raises(ModelError, match="no attention"):
        flashmix.mixers_of(fourier)
    with pytest.raises(ArgumentError, match="unknown mixer"):
        flashmix.set_mixer(encoder, 0, "fnett")
    encoder.blocks[1].mixer = torch.nn.Sequential(encoder.blocks[1].mixer)
    with pytest.raises(ArgumentError, match="wrapped in a Sequential"):
        flashmix.mixers_of(encoder)

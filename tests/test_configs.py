"""Every mixer has a frozen config, which tells what it was built from and builds another."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmix import create_mixer
from flashmix.errors import ArgumentError
from flashmix.mixers import MIXERS, HybridConfig, LocalAttentionConfig, MixerConfig
from helpers import by_reference, each_mixer, fresh_mixer, make_mixer, randn

each_name = pytest.mark.parametrize("name", MIXERS)


@each_mixer
def test_a_config_through_json_builds_the_same_mixer(text):
    mixer = make_mixer(text)
    config = MixerConfig.from_dict(json.loads(json.dumps(mixer.config.to_dict())))
    assert config == mixer.config
    twin = create_mixer(config).double()
    assert repr(twin) == repr(mixer)
    twin.load_state_dict(mixer.state_dict(), strict=True)
    x = randn(2, 9, 8)
    assert torch.equal(twin(x), mixer(x))


@each_mixer
def test_a_config_is_frozen_and_true_of_the_mixer_as_it_is_now(text):
    mixer = fresh_mixer(text)
    config = mixer.config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 16
    now = by_reference(mixer).config
    parts = now.mixers if isinstance(now, HybridConfig) else [now]
    assert {part.impl for part in parts} == {"reference"}
    assert mixer.drop_projections().config == now


@each_name
def test_a_config_has_the_options_of_the_class_and_their_defaults(name):
    parameters = list(inspect.signature(MIXERS[name]).parameters.values())
    assert [p.name for p in parameters][:1] == ["dim"]
    options = {p.name: p.default for p in parameters[1:]}
    assert options == MIXERS[name].Config.options()
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])
    assert MIXERS[name].Config(dim=128) == MIXERS[name](128).config


@each_name
def test_repr_shows_the_width_the_sizes_the_impl_and_what_is_not_the_default(name):
    mixer = create_mixer(name, 8, **({"causal": True} if name in ("local", "spectral") else {}))
    text = mixer.extra_repr()
    assert text.startswith("dim=8")
    assert text.endswith("impl='auto'")
    for option in {"window", "topk", "modes"} & MIXERS[name].Config.options().keys():
        assert f"{option}={getattr(mixer, option)}" in text
    assert ("causal=True" in text) == (name in ("local", "spectral"))
    assert "causal=False" not in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "locl", "dim": 8}, "did you mean 'local'"),
        ({"dim": 8}, "unknown name in a mixer's config"),
        ({"name": ["local"], "dim": 8}, "unknown name in a mixer's config"),
        ({"name": "local"}, "must give dim"),
        ({"name": "local", "dim": 0}, "dim must be an integer >= 1"),
        ({"name": "local", "dim": 8, "windw": 4}, "did you mean 'window'"),
        ({"name": "fnet", "dim": 8, "num_heads": 2}, "option of mixer 'fnet'"),
        ({"name": "local", "dim": 8, "window": 0}, "window must be an integer >= 1"),
        ({"name": "local", "dim": 8, "bias": "no"}, "bias must be True or False"),
        ({"name": "hybrid", "dim": 8, "mixers": [{"name": "fnet", "dim": 4}] * 2}, "dim = 8"),
        ([("name", "local")], "must be a mapping"),
    ],
)
def test_a_config_that_does_not_fit_says_why(values, words):
    with pytest.raises(ArgumentError, match=words):
        MixerConfig.from_dict(values)


def test_a_config_class_reads_its_own_mixers_alone():
    assert LocalAttentionConfig.from_dict({"dim": 8, "window": 4}).window == 4
    with pytest.raises(ArgumentError, match=r"Choices: local$"):
        LocalAttentionConfig.from_dict({"name": "topk", "dim": 8})


@pytest.mark.parametrize("given", [{"dim": 8}, {"window": 4}, {"num_heads": 2}])
def test_a_config_and_arguments_exclude_each_other(given):
    with pytest.raises(ArgumentError, match=f"{next(iter(given))} is given as an argument and by"):
        create_mixer(create_mixer("local", 8).config, **given)


@given(name=st.sampled_from(sorted(MIXERS)), data=st.data())
def test_an_option_is_given_once_in_text_or_as_an_argument(name, data):
    options = {k: v for k, v in MIXERS[name].Config.options().items() if v is not None}
    option = data.draw(st.sampled_from(sorted(options)))
    with pytest.raises(ArgumentError, match=f"{option} of .* is given in the text and as an argum"):
        create_mixer(f"{name}({option}={options[option]!r})", 8, **{option: options[option]})

"""A user's subclass of a mixer or classifier is sharded as it is, or refused."""

from __future__ import annotations

import copy

import pytest
import torch

from flashmix import create_mixer
from flashmix.errors import ArgumentError, ImplementationError
from flashmix.hf import interface
from flashmix.mixers import MIXERS, FNetConfig, Mixer
from flashmix.mixers._heads import AttentionHeads
from flashmix.parallel.attention.strategy import AttentionStrategy
from flashmix.parallel.strategies import find_strategy
from flashmix.parallel.strategy import MixerStrategy
from helpers import FLOAT64_BUDGET
from parallel_pool import Failure

COUNTS = (5, 4, 3)
TEXTS = [
    "attention",
    "local(window=5)",
    "topk(topk=3)",
    "fnet",
    "spectral(modes=1)",
    "spectral(modes=9)",
    "fourier",
    "hybrid(mixers=('fnet', 'attention'), combine=gate)",
]


@pytest.mark.parametrize("copied", [False, True])
def test_a_subclass_gives_what_it_gives_on_one_device(ranks_pool, copied):
    """It keeps its class; what it adds before and after the mixing, parameters too, is kept."""
    answers = ranks_pool.run("parallel_models.errors_of_subclasses", TEXTS, COUNTS, copied)
    assert len(answers[0]) > 3 * len(TEXTS)
    for errors in answers:
        wrong = {name: error for name, error in errors.items() if not error <= FLOAT64_BUDGET}
        assert not wrong


def test_a_mixer_from_outside_is_sharded_by_the_strategy_that_it_declares(ranks_pool):
    answers = ranks_pool.run("parallel_models.errors_of_own_formulas", COUNTS)
    assert any(name.startswith("Neighbours") for name in answers[0])
    for errors in answers:
        wrong = {name: error for name, error in errors.items() if not error <= FLOAT64_BUDGET}
        assert not wrong


class Unsharded(Mixer):
    summary, cost, Config = "", "", FNetConfig

    def forward(self, x, mask=None):
        return x.cumsum(1)


def test_a_mixer_that_declares_no_strategy_is_refused():
    with pytest.raises(ArgumentError, match=r"Unsharded cannot be sharded.*Attention, LocalAtt"):
        find_strategy(Unsharded, "Unsharded")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("OwnFormula", "it overrides mix_whole() of FNet"),
        ("AroundMix", "its forward() did not call mix()"),
        ("LargestToken", "it overrides pool() of SequenceClassifier"),
    ],
)
def test_a_subclass_that_would_see_its_slice_alone_is_refused(ranks_pool, name, words):
    for answer in ranks_pool.ask("parallel_models.subclass_amiss", name):
        assert isinstance(answer, Failure), answer
        assert words in answer.message


def test_every_mixer_has_a_strategy():
    for kind in MIXERS.values():
        base, strategy = find_strategy(kind, kind.__name__)
        assert base is kind
        assert issubclass(strategy, MixerStrategy)


def test_a_mixer_on_one_device_has_none():
    mixer = create_mixer("fnet", 8)
    assert mixer.sharding is copy.deepcopy(mixer).sharding is None
    assert mixer(torch.zeros(1, 3, 8)).shape == (1, 3, 8)


def needing_all_tokens():
    """Calls that attend otherwise than :meth:`mix`, which alone reaches the other ranks."""
    q = torch.zeros(1, 2, 3, 4)
    attend = AttentionHeads(q, q, q, lambda *rest: torch.zeros(1, 3, 8))
    bias = torch.zeros(1, 2, 3, 3)
    yield lambda mixer: mixer(attend)
    layer = torch.nn.Identity()
    yield lambda mixer: interface._attend(mixer, mixer, layer, q, q, q, position_bias=bias)
    yield lambda mixer: mixer(torch.zeros(1, 3, 8), return_weights=True)


@pytest.mark.parametrize("call", list(needing_all_tokens()))
def test_what_needs_all_tokens_is_refused(call):
    mixer = create_mixer("attention", 8, num_heads=2)
    call(mixer)
    AttentionStrategy(mixer, None).attach(mixer)
    with pytest.raises(ImplementationError, match="would need all tokens"):
        call(mixer)

"""The digits task: real images, split once and for all, on which mixers really learn."""

from __future__ import annotations

import sys

import pytest
import torch

from flashmix.errors import ArgumentError, MissingDependencyError
from flashmix.tasks import load_digits, train_digits
from flashmix.tasks.digits import CLASSES, HELD_OUT, TOKENS, _schedule

pytest.importorskip("sklearn")
CHANCE = 1 / CLASSES
FEW_STEPS = 4
FIRST_HELD_OUT = [6, 5, 5, 7, 9, 9, 8, 4, 6, 8]


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def images(x):
    return {tuple(image.flatten().tolist()) for image in x}


def test_images_are_sequences_of_pixels_between_zero_and_one(digits):
    assert digits.train_x.shape == (1797 - HELD_OUT, TOKENS, 1)
    assert digits.test_x.shape == (HELD_OUT, TOKENS, 1)
    for x, y in ((digits.train_x, digits.train_y), (digits.test_x, digits.test_y)):
        assert (x.min(), x.max()) == (0, 1)
        assert y.shape == x.shape[:1]
        assert set(y.tolist()) == set(range(CLASSES))


def test_no_held_out_image_is_trained_on(digits):
    assert not images(digits.train_x) & images(digits.test_x)


def test_every_image_is_in_one_part(digits):
    from sklearn.datasets import load_digits as load

    everything = images(torch.tensor(load().data, dtype=torch.float32) / 16)
    assert images(digits.train_x) | images(digits.test_x) == everything


def test_the_split_is_the_same_whatever_the_seed(digits):
    torch.manual_seed(1234)
    again = load_digits()
    assert all(torch.equal(a, b) for a, b in zip(digits, again, strict=True))
    assert digits.test_y[:10].tolist() == FIRST_HELD_OUT


def test_fnet_learns_well_above_chance():
    # 200 steps reach 0.77 to 0.81 with seeds 0 to 3, and 120 steps already 0.5.
    outcome = train_digits("fnet", steps=200, seed=0)
    assert outcome["accuracy"] > 5 * CHANCE
    assert outcome["train_loss"] < 1.5
    assert outcome["steps"] == 200


def test_without_learning_accuracy_is_chance():
    # The first step's learning rate is zero. Three standard errors of 360 guesses, at most.
    assert train_digits("fnet", steps=1)["accuracy"] < CHANCE + 3 * (0.25 / HELD_OUT) ** 0.5


def test_the_same_seed_gives_the_same_training():
    first, second = (train_digits("fnet", steps=FEW_STEPS, seed=3) for _ in range(2))
    other = train_digits("fnet", steps=FEW_STEPS, seed=4)
    assert (first["accuracy"], first["train_loss"]) == (second["accuracy"], second["train_loss"])
    assert other["train_loss"] != first["train_loss"]


def test_every_step_is_heard_and_counted():
    heard = []
    outcome = train_digits("fnet", steps=FEW_STEPS, on_step=lambda: heard.append(1))
    assert len(heard) == outcome["steps"] == FEW_STEPS
    assert outcome["epochs"] == pytest.approx(FEW_STEPS * 32 / (1797 - HELD_OUT), rel=0.05)
    assert outcome["params"] > 0
    assert outcome["train_seconds"] > 0


def test_a_budget_of_time_is_kept_to_within_a_step():
    outcome = train_digits("fnet", seconds=0.2)
    assert outcome["steps"] >= 1
    assert outcome["train_seconds"] >= 0.2


@pytest.mark.parametrize("mixer", ["attention", "topk(topk=8)", "spectral+local(window=16)"])
def test_other_mixers_train_too(mixer):
    outcome = train_digits(mixer, steps=2)
    assert 0 <= outcome["accuracy"] <= 1


@pytest.mark.parametrize(
    "budget", [{}, {"seconds": 1.0, "steps": 1}, {"seconds": 0.0}, {"steps": -1}, {"steps": 0}]
)
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ArgumentError, match="either seconds or steps"):
        train_digits("fnet", **budget)


def test_the_learning_rate_warms_up_and_ends_at_zero():
    assert _schedule(0.0) == 0
    assert _schedule(0.1) == pytest.approx(1)
    assert _schedule(1.0) == pytest.approx(0)
    later = [_schedule(0.1 + 0.9 * part / 10) for part in range(11)]
    assert later == sorted(later, reverse=True)


def test_without_scikit_learn_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError) as missing:
        train_digits("fnet", steps=1)
    assert str(missing.value) == (
        "the digits task needs scikit-learn, which is not installed; "
        "run: pip install 'flashmix[tasks]'"
    )

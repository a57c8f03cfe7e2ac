"""A classifier that reads the mean of its tokens: its masks, and its copies."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

from flashmix.hf import pool_mean
from hf_models import TEXT, classifier, reviews, swapped

COPIES = {"copied": copy.deepcopy, "pickled": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("mixers", [None, "fnet", "spectral(modes=3)", "attention"])
@torch.no_grad()
def test_a_copy_pools_on_its_own(mixers, how):
    model = pool_mean(classifier() if mixers is None else swapped(mixers))
    batch = reviews(9, 4)
    want = model(**batch).logits
    one = COPIES[how](model)
    model.flashmix_pooling.mask = torch.zeros(2, 9)  # as a call of the other would leave it
    assert torch.equal(one(**batch).logits, want)
    assert one.flashmix_pooling is not model.flashmix_pooling
    assert pool_mean(one)(**batch).logits.equal(want)


@pytest.mark.parametrize("name", [name for name in TEXT if name != "distilbert"])
@torch.no_grad()
def test_a_mask_by_position_is_the_mask(name):
    model, batch = pool_mean(classifier(name)), reviews(9, 4)
    want = model(**batch).logits
    names = list(inspect.signature(model.forward).parameters)
    assert names[:2] == ["input_ids", "attention_mask"]
    assert torch.equal(model(batch["input_ids"], batch["attention_mask"]).logits, want)


@torch.no_grad()
def test_no_mask_outlives_its_call():
    model, batch = pool_mean(classifier()), reviews(9, 4)
    want = model(batch["input_ids"]).logits
    model(**batch)
    assert model.flashmix_pooling.mask is None
    assert torch.equal(model(batch["input_ids"]).logits, want)

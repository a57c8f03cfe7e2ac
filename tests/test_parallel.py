"""A mixer over 2 and 4 ranks gives what it gives on one device, gradients included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import FLOAT64_BUDGET, MIXERS
from parallel_pool import Pool


@pytest.fixture(scope="module")
def pool():
    pool = Pool(4)
    yield pool
    pool.close()


def assert_equal(answers, budget=FLOAT64_BUDGET):
    for rank, errors in enumerate(answers):
        for name, error in errors.items():
            assert error <= budget, f"rank {rank}, {name}: relative error {error:.2e}"


SHARDABLE = [text for text in MIXERS if "fnet(impl=reference)" not in text]


@st.composite
def layouts(draw, ranks):
    """Tokens of each rank, batch, and a mask with padding anywhere or None."""
    counts = tuple(draw(st.lists(st.integers(1, 9), min_size=ranks, max_size=ranks)))
    batch = draw(st.integers(1, 3))
    mask = None
    if draw(st.booleans()):
        row = st.lists(st.booleans(), min_size=sum(counts), max_size=sum(counts))
        mask = draw(st.lists(row, min_size=batch, max_size=batch))
    return counts, batch, mask


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("text", SHARDABLE)
def test_ranks_compute_what_one_device_does(pool, text, ranks):
    @settings(max_examples=6)
    @given(layouts(ranks), st.sampled_from([1, 2, 4]))
    def law(layout, heads):
        counts, batch, mask = layout
        if "combine=heads" in text:
            heads = 2
        if "naive" in text and batch * heads < ranks:
            heads = 4
        assert_equal(pool.run("errors_of_mixer", text, counts, batch, heads, mask))

    law()


@pytest.mark.parametrize("text", SHARDABLE)
def test_float32_agrees_within_a_hundred_thousandth(pool, text):
    answers = pool.run("errors_of_mixer", text, (40, 33, 21, 34), 2, 4, None, torch.float32, 32)
    assert_equal(answers, 1e-5)

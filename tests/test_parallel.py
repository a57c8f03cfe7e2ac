"""A mixer over 2 and 4 ranks gives what it gives on one device, gradients included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import FLOAT64_BUDGET, MIXERS

COUNTS = (3, 7, 1, 5)


def padded(batch):
    """A mask with padding anywhere, as lists."""
    generator = torch.Generator().manual_seed(batch)
    mask = torch.rand(batch, sum(COUNTS), generator=generator) < 0.7
    mask[0, :5] = False  # the first rank has padding alone
    return mask.tolist()


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
def test_ranks_compute_what_one_device_does(ranks_pool, text, ranks):
    @settings(max_examples=8)
    @given(layouts(ranks), st.sampled_from([1, 2, 4]))
    def law(layout, heads):
        counts, batch, mask = layout
        if "combine=heads" in text:
            heads = 2
        if "naive" in text and batch * heads < ranks:
            heads = 4
        assert_equal(ranks_pool.run("errors_of_mixer", text, counts, batch, heads, mask))

    law()


@pytest.mark.parametrize("text", SHARDABLE)
def test_float32_agrees_within_a_hundred_thousandth(ranks_pool, text):
    answers = ranks_pool.run(
        "errors_of_mixer", text, (40, 33, 21, 34), 2, 4, None, torch.float32, 32
    )
    assert_equal(answers, 1e-5)


@pytest.mark.parametrize("text", ["spectral(modes=1)", "spectral(modes=9)"])
def test_what_a_mixer_shares_with_a_layer_is_summed_once(ranks_pool, text):
    assert_equal(ranks_pool.run("parallel_models.errors_of_tied", text, COUNTS))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_whole_encoder_agrees(ranks_pool, recompute):
    assert_equal(
        ranks_pool.run("parallel_models.errors_of_encoder", COUNTS, 2, padded(2), recompute)
    )


@pytest.mark.parametrize("kind", ["sequence", "text"])
def test_classifiers_give_one_devices_logits_and_gradients_on_every_rank(ranks_pool, kind):
    assert_equal(ranks_pool.run("parallel_models.errors_of_classifier", kind, COUNTS, padded(3)))


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_another_mesh_dimension_holds_other_sequences(ranks_pool, wrapper):
    assert_equal(ranks_pool.run("parallel_models.errors_of_both_dimensions", wrapper))


def test_a_swapped_hugging_face_encoder_agrees(ranks_pool):
    pytest.importorskip("transformers")
    assert max(ranks_pool.run("parallel_models.error_of_hugging_face", (5, 6, 4, 5))) < 1e-12


@pytest.mark.parametrize("mixers", ["fnet", "attention,spectral"])
@pytest.mark.parametrize("tokens", [11, 1])
def test_fine_tuning_over_sequences_and_batch_has_one_processs_gradients(
    ranks_pool, mixers, tokens
):
    pytest.importorskip("transformers")
    assert_equal(ranks_pool.run("parallel_models.errors_of_spread_training", mixers, tokens))


@pytest.mark.parametrize("text", ["fnet", "spectral(modes=16)"])
def test_two_ranks_hold_little_more_than_half_of_one(ranks_pool, text):
    """The rest is a few pieces in flight; how soon gloo lets go of them varies."""
    shares = ranks_pool.run("parallel_volume.share_of_memory", text, 4096, 768)[:2]
    assert max(shares) <= 0.6, shares


def test_a_model_stays_what_it_was(ranks_pool):
    for before, after in ranks_pool.run("parallel_models.names_and_types", COUNTS):
        assert before == after


def test_every_rank_takes_the_first_ones_values(ranks_pool):
    assert len(set(ranks_pool.run("parallel_models.first_ranks_values"))) == 1


def test_metadata_is_exchanged_by_cpus_though_the_meshs_group_has_no_cpu_backend(ranks_pool):
    answers = ranks_pool.run("parallel_failures.metadata_through_all", 3)
    assert answers == [([[rank, 3] for rank in range(3)], 2 * 3 * 8)] * 3 + [None]


@pytest.mark.parametrize("text", ["local(window=5)", "local(window=8, causal=True)"])
@pytest.mark.parametrize("counts", [(8, 9), (12, 8, 8, 30), (8, 7)], ids=str)
def test_rows_near_the_ends_see_the_neighbours_tokens(ranks_pool, text, counts):
    """(8, 7) is too short for a window of 8: there the slice is extended instead."""
    for heads, batch in ((1, 1), (4, 3)):
        assert_equal(ranks_pool.run("errors_of_mixer", text, counts, batch, heads))


@pytest.mark.parametrize(
    "text",
    [
        "local(window=5, impl=reference)",
        "local(window=5, causal=True, impl=reference)",
        "spectral(modes=3)",
        "fnet",
    ],
)
def test_gradients_have_gradients_over_ranks(ranks_pool, text):
    assert_equal(ranks_pool.run("error_of_second_derivatives", text, (8, 9)))


# One head of one sequence is left for two ranks: attention goes round the ring.
SINGLE_HEAD = [text for text in SHARDABLE if "naive" not in text and "heads" not in text]


@pytest.mark.parametrize("text", SINGLE_HEAD)
def test_second_derivatives_over_ranks_are_right_or_refused(ranks_pool, text):
    for answer in ranks_pool.run("second_derivatives_or_refusal", text, (8, 9))[:2]:
        if isinstance(answer, str):
            assert "has no second derivative; take it on one device" in answer
        else:
            assert answer <= FLOAT64_BUDGET


@pytest.mark.parametrize("text", ["attention", "local(window=5)", "fnet", "spectral(modes=3)"])
def test_ranks_refuse_tangents_and_transforms(ranks_pool, text):
    for answers in ranks_pool.run("refusals_of_transforms", text, (8, 9))[:2]:
        assert all("impl='reference'" in answer for answer in answers), answers

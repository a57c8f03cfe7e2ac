"""What is wrong on one rank is said on every rank, and never waited for beyond the timeout."""

from __future__ import annotations

import pytest

from parallel_pool import Failure, Pool

STALL_TIMEOUT_S = 1
"""Of the one test that waits for it; the others' is longer than a busy machine ever takes."""


@pytest.fixture
def doomed():
    pool = Pool(3)
    yield pool
    pool.close()


def errors(answers):
    assert all(isinstance(answer, Failure) for answer in answers), answers
    return [(answer.kind, answer.message) for answer in answers]


@pytest.mark.parametrize("text", ["fnet", "attention", "spectral", "local", "fourier"])
@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"batch": 3}, "batch: rank 0 has 2, rank 1 has 2, rank 2 has 3, rank 3 has 2"),
        ({"dtype": "float64"}, "dtype: rank 0 has torch.float32"),
    ],
)
def test_what_differs_between_ranks_is_named_on_each(ranks_pool, text, odd, words):
    for kind, message in errors(ranks_pool.ask("parallel_failures.call", text, odd_rank=2, **odd)):
        assert kind == "ParallelError"
        assert f"the ranks differ in {words}" in message


def test_inputs_that_need_gradients_on_some_ranks_alone_are_refused(ranks_pool):
    for kind, message in errors(
        ranks_pool.ask("parallel_failures.call", "fnet", odd_rank=1, grad=False)
    ):
        assert kind == "ParallelError"
        assert "differ in requires_grad: rank 0 has 1, rank 1 has 0" in message


@pytest.mark.parametrize("text", ["fnet", "attention", "hybrid"])
def test_a_rank_that_refuses_its_input_tells_the_others(ranks_pool, text):
    answers = errors(ranks_pool.ask("parallel_failures.call", text, odd_rank=1, dim=9))
    assert answers[1][0] == "ArgumentError"
    for rank in (0, 2, 3):
        kind, message = answers[rank]
        assert kind == "ParallelError"
        assert "rank 1 failed" in message
        assert answers[1][1] in message


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("two dimensions", "ArgumentError", "pass the dimension that the sequence is sharded over"),
        ("no mesh", "ArgumentError", "must be a torch.distributed DeviceMesh"),
        ("no mixer", "ArgumentError", "holds no flashmix mixer"),
        ("twice", "ArgumentError", "is sharded already"),
        ("convolution", "ArgumentError", "1 (Conv1d) reaches across tokens"),
        (
            "impl",
            "ImplementationError",
            "impl='reference' does not support a sequence",
        ),
        ("meta", "ArgumentError", "is on the meta device"),
        ("models", "ParallelError", "the ranks differ in model"),
        ("short", "ArgumentError", "every rank needs a token, but 4 ranks share 3"),
        (
            "weights",
            "ImplementationError",
            "weights would need all tokens",
        ),
    ],
)
def test_what_cannot_be_sharded_is_refused(ranks_pool, what, kind, words):
    for got, message in errors(ranks_pool.ask("parallel_failures.shard_with", what)):
        assert got == kind
        assert words in message


def test_a_model_that_one_rank_refuses_is_refused_on_all_and_left_alone(ranks_pool):
    answers = errors(ranks_pool.ask("parallel_failures.shard_with", "impl on one rank"))
    assert [kind for kind, _ in answers] == ["ParallelError", "ImplementationError"] + [
        "ParallelError"
    ] * 2
    assert "rank 1 failed: FNet: impl='reference'" in answers[0][1]


def test_the_group_still_works_after_refusals(ranks_pool):
    errors(ranks_pool.ask("parallel_failures.call", "fnet", odd_rank=2, batch=3))
    assert ranks_pool.run("parallel_failures.call", "fnet") == [[2, 6, 8]] * 4


@pytest.mark.parametrize(
    ("text", "dies_in"),
    [
        ("fnet", "forward"),
        ("fnet", "chunks"),
        ("fnet", "backward"),
        ("spectral(modes=40)", "chunks"),
        ("attention", "backward"),
    ],
)
def test_a_rank_that_is_killed_ends_the_others(doomed, text, dies_in):
    answers = doomed.ask("parallel_failures.call", text, odd_rank=1, dies_in=dies_in)
    assert answers[1] is None
    for kind, message in errors([answers[0], answers[2]]):
        assert kind == "ParallelError"
        assert "failed, died, or took longer than the process group's timeout" in message


def test_a_rank_that_is_killed_before_it_tells_the_facts_ends_the_others(doomed):
    answers = doomed.ask("parallel_failures.metadata_through_all", 3, dies=True)
    assert answers[2] is None
    assert [kind for kind, _ in errors(answers[:2])] == ["ParallelError"] * 2


def test_a_rank_that_stalls_is_waited_for_no_longer_than_the_timeout(doomed):
    answers = doomed.ask(
        "parallel_failures.call",
        "attention",
        odd_rank=1,
        timeout_s=STALL_TIMEOUT_S,
        sleeps_s=3 * STALL_TIMEOUT_S,
    )
    for kind, message in errors(answers):
        assert kind == "ParallelError"
        assert "got no answer" in message

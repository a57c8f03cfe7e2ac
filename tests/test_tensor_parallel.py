"""Tensor parallelism is right or refused: heads and hidden channels shared among ranks."""

from __future__ import annotations

import pytest

from flashmix import create_mixer
from flashmix.errors import ArgumentError, ImplementationError
from flashmix.parallel import tp_plan
from flashmix.parallel.tensor_parallel import HeadsParallel
from helpers import FLOAT64_BUDGET
from parallel_pool import Failure

MIXERS = [
    "local(window=5, num_kv_heads=2)",
    "attention",
    "attention(causal=True, bias=False)",
    "local(window=5)",
    "topk(topk=3)",
    "topk(topk=6, selection=block)",
    "fnet",
    "spectral(modes=3)",
    "spectral(modes=3, unitary=True)",
    "fourier",
    "hybrid(mixers=('spectral(modes=3)', 'local(window=3)'))",
    "hybrid(mixers=('fnet', 'topk(topk=2)'), combine=gate)",
    "hybrid(mixers=('fourier', 'attention'), combine=heads)",
]


def check(answers):
    for errors in answers:
        assert all(error <= FLOAT64_BUDGET for error in errors.values()), errors


def test_the_plan_gives_what_one_process_gives_forward_and_backward(ranks_pool):
    answers = ranks_pool.run("module_cases.errors_of_tensor_parallel", MIXERS, 2)
    assert len(answers[0]) > 60
    check(answers)


def test_a_head_for_each_rank(ranks_pool):
    check(ranks_pool.run("module_cases.errors_of_tensor_parallel", ["attention", "fourier"], 4))


def test_the_plan_takes_blocks_and_all_that_they_hold(ranks_pool):
    check(ranks_pool.run("module_cases.errors_of_tensor_parallel_encoder"))
    answers = ranks_pool.run("module_cases.error_of_tensor_parallel_classifier")
    assert max(answers) <= FLOAT64_BUDGET


def test_fsdp_shards_what_the_plan_left(ranks_pool):
    check(ranks_pool.run("module_cases.errors_of_both"))


def test_checkpoints_of_ranks_are_those_of_one_process(ranks_pool, tmp_path):
    answers = ranks_pool.run("module_cases.errors_of_checkpoints", str(tmp_path))
    assert len(answers[0]) == 8
    assert all(error == 0 for errors in answers for error in errors.values())


@pytest.mark.parametrize("text", ["attention", "local(window=5)", "topk(topk=3)"])
def test_column_shards_of_q_k_and_v_in_one_are_refused(text, ranks_pool):
    for answer in ranks_pool.ask("module_cases.plain_plan", text)[:2]:
        assert isinstance(answer, Failure)
        assert answer.kind == "ImplementationError"
        assert "tp_plan" in answer.message


def test_column_shards_of_values_are_whole_heads(ranks_pool):
    check(ranks_pool.run("module_cases.plain_plan", "fourier"))


@pytest.mark.parametrize("first", ["tokens", "heads"])
def test_ranks_share_tokens_or_heads(first, ranks_pool):
    for answer in ranks_pool.ask("module_cases.both_ways", first)[:2]:
        assert answer.kind in ("ArgumentError", "ParallelError")
        assert "cannot be combined" in answer.message


@pytest.mark.parametrize("text", ["attention", "fourier"])
def test_heads_that_ranks_cannot_share_are_refused(text, ranks_pool):
    for answer in ranks_pool.ask("module_cases.three_heads", text)[:2]:
        assert answer.kind == "ArgumentError"
        assert "num_heads must be a multiple of the 2 ranks" in answer.message


def test_weights_of_some_heads_are_refused(ranks_pool):
    for answer in ranks_pool.ask("module_cases.weights_of_heads", "attention")[:2]:
        assert answer.kind == "ImplementationError"


def test_a_projection_that_is_wrapped_already_is_refused():
    mixer = create_mixer("attention", 8)
    plan = tp_plan(mixer)
    assert list(plan) == ["qkv", "out"]
    with pytest.raises(ImplementationError, match="before they are wrapped"):
        plan["qkv"]._apply(mixer, None)


def test_only_modules_have_a_plan():
    with pytest.raises(ArgumentError, match=r"nn.Module, got str"):
        tp_plan("attention")
    assert tp_plan(create_mixer("spectral", 8)) == {}
    assert isinstance(tp_plan(create_mixer("fourier", 8))["value"], HeadsParallel)


@pytest.mark.parametrize("text", ["attention", "local(window=5)", "topk(topk=3)"])
def test_a_swapped_model_mixes_the_heads_that_its_own_projections_have_here(text, ranks_pool):
    answers = ranks_pool.run("module_cases.error_of_bert_with_plain_plan", text)
    assert max(answers) <= FLOAT64_BUDGET


@pytest.mark.parametrize(
    "text",
    [
        "fnet",
        "spectral",
        "fourier",
        "spectral+local",
        "hybrid(mixers=('local', 'attention'), combine=heads)",
        "hybrid(mixers=('local', 'attention'), combine=gate)",
    ],
)
def test_a_swapped_model_that_needs_all_heads_refuses_some(text, ranks_pool):
    for answer in ranks_pool.ask("module_cases.error_of_bert_with_plain_plan", text)[:2]:
        assert isinstance(answer, Failure), answer

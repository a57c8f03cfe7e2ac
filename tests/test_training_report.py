"""Reports of trainings: every sentence and cell follows from the rows."""

from __future__ import annotations

import math

import pytest

from flashmix.bench.stats import mean_interval
from flashmix.report import markdown, statements
from flashmix.report.analysis.training import finished, latest, paired
from report_helpers import EXPERIMENT

BASELINES = {
    "vanilla eager": {"step_ms": 20.0, "infer_ms": 8.0, "train_peak_memory_mb": 50.0},
    "vanilla fused": {"step_ms": 10.0, "infer_ms": 4.0, "train_peak_memory_mb": 40.0},
}
RUN = {
    "suite": "finetune",
    "command": "flashmix finetune",
    "experiment": EXPERIMENT,
    "threads": 1,
    "started": "then",
    "finished": "later",
    "machine": {"cpu": "a processor", "cores": 2, "python": "3", "flashmix": "0", "commit": None,
                "packages": {}},
}  # fmt: skip


def row(mixers, seed, accuracy, **fields):
    return {
        "suite": "finetune", "task": "imdb", "model": "bert-tiny", "mixers": mixers, "seed": seed,
        "status": "ok", "test_accuracy": accuracy, "val_accuracy": accuracy, "f1": accuracy,
        "confusion": [[40, 10], [5, 45]], "params": 1000, "steps": 100,
        "train_seconds": 10.0, "train_seconds_by": "clock", "step_ms": 5.0, "infer_ms": 2.0,
        "peak_memory_mb": 30.0, "baselines": BASELINES, "best_epoch": 1,
        "history": [{"epoch": 1, "train_loss": 0.5, "val_loss": 0.4, "val_accuracy": accuracy}],
        **fields,
    }  # fmt: skip


def runs(ours, theirs):
    rows = [row("attention", seed, value) for seed, value in enumerate(theirs)]
    return rows + [row("fnet", seed, v, train_seconds=5.0) for seed, v in enumerate(ours)]


def test_the_interval_of_a_mean_is_students():
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.high - 2 == 2 - found.low == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(mean_interval([1.0]).low)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([0.90, 0.91, 0.90], [0.80, 0.81, 0.80], ("10.00 points", "significantly higher")),
        ([0.70, 0.71, 0.70], [0.80, 0.81, 0.80], ("-10.00 points", "significantly lower")),
        ([0.70, 0.90, 0.80], [0.80, 0.79, 0.82], ("", "no significant difference")),
        ([0.90], [0.80], ("10.00 points", "from one seed")),
    ],
)
def test_a_verdict_needs_an_interval_beside_zero(ours, theirs, verdict):
    (sentence,) = statements(runs(ours, theirs))
    difference, judged = verdict
    start = "fnet compared with attention: test accuracy differs by "
    assert sentence.startswith(start + difference)
    assert f", {judged}; it keeps" in sentence
    assert "trains 2.00x as fast" in sentence


def test_a_mean_over_fewer_seeds_than_were_asked_for_says_so():
    failed = {**row("fnet", 1, 0.9), "status": "oom", "error": "no memory"}
    rows = [
        one
        for one in runs([0.7, 0.9, 0.8], [0.6, 0.8, 0.7])
        if one["mixers"] != "fnet" or one["seed"] != 1
    ]
    for all_rows in (rows, [*rows, failed]):
        (sentence,) = statements(all_rows)
        assert sentence.endswith("Only 2 of 3 seeds of fnet finished.")
        assert "| 2 of 3 |" in markdown(RUN, all_rows)
    assert "Only" not in statements(runs([0.7, 0.9], [0.6, 0.8]))[0]


def test_differences_are_taken_seed_by_seed():
    fnet, attention = finished(runs([0.7, 0.9], [0.6, 0.8]))[::-1]
    assert paired(fnet, attention).value == pytest.approx(0.1)
    assert paired(fnet, attention).low == pytest.approx(0.1)


def test_a_repeated_training_counts_once_and_a_failed_one_is_listed():
    failed = {
        "mixers": "fnet",
        "task": "imdb",
        "seed": 1,
        "status": "oom",
        "error": "no memory",
        "suite": "finetune",
    }
    rows = [failed, *runs([0.9], [0.8])]
    assert len(latest([failed, row("fnet", 1, 0.9)])) == 1
    report = markdown(RUN, rows)
    assert "| fnet on imdb, seed 1 | oom | no memory |" in report
    assert "did not finish" not in markdown(RUN, rows[1:])


def test_cost_stands_beside_both_vanilla_models():
    report = markdown(RUN, runs([0.9, 0.91], [0.8, 0.82]))
    assert "| fnet | 5.00 | 4.00x | 2.00x | 2.00 | 4.00x | 2.00x | 30.0 |" in report
    assert "| vanilla eager | 20.0 | - | - | 8.00 | - | - | 50.0 |" in report
    assert "| fnet | 40 | 10 | 5 | 45 |" in report


def test_times_that_are_not_the_clocks_are_said_to_be():
    rows = [dict(one, train_seconds_by="steps x step_ms, alone") for one in runs([0.9], [0.8])]
    assert "training times are not wall-clock times" in markdown(RUN, rows)
    assert "training times are not wall-clock times" not in markdown(RUN, runs([0.9], [0.8]))

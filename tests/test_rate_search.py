"""The search for learning rates: validation chooses, nothing is trained twice, the report tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmix.bench.store import SEARCH_FILE, RunFolder, read_rows
from flashmix.bench.training import Experiment, run_experiment
from flashmix.bench.training.search import choose_rates
from flashmix.errors import ArgumentError
from flashmix.report import write_report
from flashmix.tasks.finetuning import FinetuneConfig
from training_helpers import own_cache, reviews, vocabulary  # noqa: F401

RATES = (1e-4, 1e-3, 1e-2)


def jobs(out, *mixers, kind="finetune"):
    return [
        {"kind": kind, "mixers": one, "seed": 3, "config": {"lr": 0.5}, "folder": str(out / one)}
        for one in mixers
    ]


def trainer(scores, done):
    """Does jobs as workers would; ``scores`` by mixers and rate, None for one that fails."""

    def do(some):
        for job in some:
            key = job["mixers"], job["config"]["lr"]
            assert job["trial"]
            done.append(key)
            Path(job["folder"]).mkdir(parents=True)
            score = scores[key]
            if score is None:
                yield job, {"status": "error", "error": "the loss is not finite any more"}
            else:
                yield job, {"status": "ok", "val_accuracy": score, "val_loss": score}

    return do


SCORES = {
    **dict(zip([("fnet", rate) for rate in RATES], [0.5, 0.7, 0.6], strict=True)),
    **dict(zip([("local", rate) for rate in RATES], [0.8, 0.8, None], strict=True)),
    **dict(zip([("topk", rate) for rate in RATES], [None, None, None], strict=True)),
}


@pytest.mark.parametrize(
    ("kind", "best"),
    [
        (
            "finetune",
            {"fnet": 1e-3, "local": 1e-4, "topk": 1e-4},
        ),  # by accuracy, of equals the first
        ("pretrain", {"fnet": 1e-4, "local": 1e-4, "topk": 1e-4}),  # by loss
    ],
)
def test_validation_chooses_and_the_best_trial_takes_the_seeds_place(tmp_path, kind, best):
    done = []
    with RunFolder.hold(tmp_path) as folder:
        some = jobs(tmp_path, "fnet", "local", "topk", kind=kind)
        assert choose_rates(some, RATES, folder, trainer(SCORES, done)) == best
    assert done == list(SCORES)
    assert [(row["mixers"], row["lr"]) for row in read_rows(tmp_path, SEARCH_FILE)] == done
    assert read_rows(tmp_path) == []
    for mixers, rate in best.items():
        assert (tmp_path / mixers).is_dir()
        assert not (tmp_path / f"{mixers}-lr-{rate:g}").exists()


def test_a_resumed_search_repeats_only_what_did_not_finish(tmp_path):
    first, again = [], []
    with RunFolder.hold(tmp_path) as folder:
        choose_rates(jobs(tmp_path, "fnet"), RATES, folder, trainer(SCORES, first))
        some = jobs(tmp_path, "fnet", "local")
        rates = choose_rates(some, RATES, folder, trainer(SCORES, again))
    assert rates == {"fnet": 1e-3, "local": 1e-4}
    assert again == [key for key in SCORES if key[0] == "local"]


def test_a_run_trains_all_seeds_at_the_rate_that_validation_chose(
    tmp_path,
    reviews,  # noqa: F811
    vocabulary,  # noqa: F811
    own_cache,  # noqa: F811
):
    config = FinetuneConfig(
        task="imdb", model="bert-tiny", tokenizer=str(vocabulary), data=str(reviews), epochs=3,
        batch_size=8, seq_len=24, lr=1e-7,
    )  # fmt: skip
    searched = Experiment(
        config=config, mixers=("fnet",), rates=(1e-7, 3e-3), seeds=(0, 1), lengths=()
    )
    run_experiment(searched, tmp_path, kind="finetune", threads=1)
    rows = read_rows(tmp_path)
    assert [(row["seed"], row["lr"]) for row in rows] == [(0, 3e-3), (1, 3e-3)]
    trials = read_rows(tmp_path, SEARCH_FILE)
    assert [row["lr"] for row in trials] == [1e-7, 3e-3]
    assert all("test_accuracy" not in row for row in trials)
    assert rows[0]["history"] == trials[1]["history"]  # its clock too: it was not trained twice
    assert [row["test_examples"] for row in rows] == [80, 80]
    report = write_report(tmp_path).read_text()
    assert "| mixers | 1e-07 | 0.003 | chosen |" in report
    assert "peak learning rate each model's own" in report


@pytest.mark.parametrize("rates", [(1e-3, 1e-3), (1e-3, -1.0)])
def test_bad_rates_are_refused(rates):
    config = FinetuneConfig(task="digits", model="bert-tiny")
    with pytest.raises(ArgumentError):
        Experiment(config=config, mixers=("fnet",), rates=rates)

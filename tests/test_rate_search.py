"""The search for learning rates: validation chooses, nothing is trained twice, the report tells."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from flashmix.bench.process import WorkerDiedError
from flashmix.bench.store import SEARCH_FILE, RunFolder, read_rows, read_run
from flashmix.bench.training import Experiment, run_experiment, running
from flashmix.bench.training import jobs as jobs_module
from flashmix.bench.training.search import best_rates, choose_rates, undecided
from flashmix.cli import report as report_command
from flashmix.cli.main import main
from flashmix.errors import ArgumentError
from flashmix.report import write_report
from flashmix.report.sections.training import rate_section
from flashmix.tasks.checkpoint import read_weights
from flashmix.tasks.finetuning import FinetuneConfig
from training_helpers import (  # noqa: F401
    InProcess,
    cache,
    in_process,
    own_cache,
    reviews,
    vocabulary,
)

RATES = (1e-4, 1e-3, 1e-2)


def jobs(out, *mixers, kind="finetune"):
    return [
        {"kind": kind, "mixers": one, "seed": 3, "config": {"lr": 0.5}, "folder": str(out / one)}
        for one in mixers
    ]


def trainer(scores, done):
    """Does jobs as workers would; ``scores`` by mixers and rate, or the status of what has none."""

    def do(some):
        for job in some:
            key = job["mixers"], job["config"]["lr"]
            assert job["trial"]
            done.append(key)
            Path(job["folder"]).mkdir(parents=True, exist_ok=True)
            score = scores[key]
            if isinstance(score, str):
                yield job, {"status": score, "error": f"it {score}"}
            else:
                yield job, {"status": "ok", "val_accuracy": score, "val_loss": score}

    return do


SCORES = {
    **dict(zip([("fnet", rate) for rate in RATES], [0.5, 0.7, 0.6], strict=True)),
    **dict(zip([("local", rate) for rate in RATES], [0.8, 0.8, "diverged"], strict=True)),
    **dict(zip([("topk", rate) for rate in RATES], ["diverged"] * 3, strict=True)),
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


@pytest.mark.parametrize("status", ["crashed", "timeout", "oom", "error"])
def test_a_trial_without_a_result_leaves_its_pattern_undecided_and_is_the_one_tried_again(
    tmp_path, status
):
    """Though the other rates have results, none wins by what befell a process."""
    scores = {**SCORES, ("fnet", 1e-3): status}
    first, again = [], []
    with RunFolder.hold(tmp_path) as folder:
        some = jobs(tmp_path, "fnet", "local")
        assert choose_rates(some, RATES, folder, trainer(scores, first)) == {"local": 1e-4}
        rows = read_rows(tmp_path, SEARCH_FILE)
        ((mixers, rate, row),) = undecided(["fnet", "local"], RATES, rows)
        assert (mixers, rate, row["status"]) == ("fnet", 1e-3, status)
        assert rate_section(rows, RATES, accuracy=True).table.rows[0][-1] == "undecided"
        assert not (tmp_path / "fnet").exists()
        found = choose_rates(some, RATES, folder, trainer(SCORES, again))
    assert found == {"fnet": 1e-3, "local": 1e-4}
    assert again == [("fnet", 1e-3)]
    rows = read_rows(tmp_path, SEARCH_FILE)
    assert not undecided(["fnet", "local"], RATES, rows)
    assert rate_section(rows, RATES, accuracy=True).table.rows[0][-1] == "0.001"


def test_of_equals_the_first_rate_wins_in_whatever_order_they_ended():
    rows = [{"mixers": "fnet", "lr": rate, "score": 0.5} for rate in RATES]
    for order in itertools.permutations(rows):
        assert best_rates(order, RATES) == {"fnet": RATES[0]}


def test_what_was_never_tried_is_undecided_too():
    assert undecided(["fnet"], (1e-3, 1e-2), []) == [("fnet", 1e-3, None), ("fnet", 1e-2, None)]
    assert undecided(["fnet"], (1e-3,), []) == []


class KilledOnce(InProcess):
    """The first time that a trial at ``rate`` is at ``step``, it dies."""

    def __init__(self, rate, step):
        self.rate, self.step, self.dead = rate, step, False

    def emit(self, job, event, **fields):
        at = job.get("trial") and job["config"]["lr"] == self.rate
        if at and fields["step"] == self.step and not self.dead:
            self.dead = True
            raise WorkerDiedError("crashed", "killed by SIGKILL")


def untimed(found):
    times = ("seconds", "wall_seconds", "train_seconds", "test_seconds")
    if isinstance(found, dict):
        return {key: untimed(value) for key, value in found.items() if key not in times}
    return [untimed(one) for one in found] if isinstance(found, list) else found


def test_a_search_whose_worker_was_killed_ends_with_the_bits_of_one_left_alone(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("transformers")
    pytest.importorskip("sklearn")
    monkeypatch.setattr(jobs_module, "SAY_SECONDS", 0.0)
    monkeypatch.setattr(report_command, "_if_installed", lambda *_: None)  # no page: it takes long

    def finetune(*arguments, kill):
        worker = KilledOnce(1e-3, 5 if kill else -1)
        monkeypatch.setattr(running, "Worker", lambda *_, **__: worker)
        code = main(["finetune", *map(str, arguments)])
        assert worker.dead == kill
        return code, " ".join(capsys.readouterr().out.split())

    settings = ("--task", "digits", "--mixers", "fnet", "--seeds", 2, "--lengths", "",
                "--limit", 100, "--device", "cpu", "--threads", 1, "--lr", "1e-3,3e-3",
                "--epochs", 2)  # fmt: skip
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert finetune(*settings, "--out", alone, kill=False)[0] == 0
    code, printed = finetune(*settings, "--out", killed, kill=True)
    assert code == 1
    assert (
        "fnet: the learning rate is undecided, for the trial at 0.001 has no result (crashed: "
        f"killed by SIGKILL); try it again: flashmix finetune --resume {killed}"
    ) in printed
    assert read_rows(killed) == []
    assert read_run(killed)["finished"] is None
    trials = [(row["lr"], row["status"]) for row in read_rows(killed, SEARCH_FILE)]
    assert trials == [(1e-3, "crashed"), (3e-3, "ok")]
    assert finetune("--resume", killed, kill=False)[0] == 0
    trials = [(row["lr"], row["status"]) for row in read_rows(killed, SEARCH_FILE)]
    assert trials == [(1e-3, "crashed"), (3e-3, "ok"), (1e-3, "ok")]
    assert read_run(killed)["finished"]
    assert untimed(read_rows(killed)) == untimed(read_rows(alone))
    for seed in (0, 1):
        weights = [
            read_weights(folder / "fnet" / f"seed-{seed}" / "model" / "model.safetensors")
            for folder in (alone, killed)
        ]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_run_trains_all_seeds_at_the_rate_that_validation_chose(
    tmp_path,
    in_process,  # noqa: F811
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

"""Training: what a run goes on from, that it learns, and that kills and ranks change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bench_helpers import WITHOUT_PAGE, start_cli
from flashmix.bench.store import read_rows, read_run
from flashmix.bench.training import Experiment, run_experiment
from flashmix.errors import ArgumentError, FlashmixError
from flashmix.tasks import checkpoint
from flashmix.tasks.batches import Labelled, TrainingBatches
from flashmix.tasks.finetuning import FinetuneConfig
from flashmix.tasks.loop import STATE_FILE, Recipe, Stopped, Trainer
from flashmix.tasks.pretraining import PretrainConfig
from training_helpers import (  # noqa: F401
    cache,
    in_process,
    own_cache,
    reviews,
    vocabulary,
)

pytest.importorskip("transformers")
CHANCE = 0.1
TIMES = ("seconds", "wall_seconds", "train_seconds", "test_seconds")


class Bag(nn.Module):
    """Mean of embeddings, dropout, a linear head: enough to train."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(80, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, batch):
        x = nn.functional.dropout(self.embed(batch.ids).mean(1), 0.5, self.training)
        return nn.functional.cross_entropy(self.head(x), batch.target, reduction="sum")


def bag_trainer(folder, **options):
    torch.manual_seed(0)
    lengths = torch.randint(2, 9, (40,))
    ids = torch.randint(80, (40, 8)).int()
    data = Labelled(ids, lengths, torch.randint(2, (40,)))
    model = Bag()
    losses = []

    def evaluate():
        losses.append(model(TrainingBatches(data, 40, 0)(0)).item())
        return {"score": -losses[-1], "val_loss": losses[-1], "val_accuracy": 0.0}

    folder.mkdir(exist_ok=True)
    settings = {"recipe": Recipe(lr=0.05), "steps": 30, **options}
    return Trainer(
        model,
        TrainingBatches(data, 8, 0),
        terms=lambda batch: len(batch.target),
        evaluate=evaluate,
        folder=folder,
        **settings,
    )


def untimed(found):
    if isinstance(found, dict):
        return {key: untimed(value) for key, value in found.items() if key not in TIMES}
    return [untimed(one) for one in found] if isinstance(found, list) else found


def test_a_training_stopped_at_any_step_goes_on_to_the_same_bits(tmp_path):
    whole = bag_trainer(tmp_path / "whole")
    history = untimed(whole.run().history)
    for stop in (1, 7, 12, 29):
        folder = tmp_path / f"at-{stop}"
        first = bag_trainer(folder)
        first.stop = lambda first=first, stop=stop: first.progress.step >= stop
        with pytest.raises(Stopped):
            first.run()
        second = bag_trainer(folder)
        assert 0 < second.progress.step < 30
        assert untimed(second.run().history) == history
        for name, value in checkpoint.weights(whole.model).items():
            assert torch.equal(value, checkpoint.weights(second.model)[name])


def test_the_best_epoch_is_what_remains(tmp_path):
    trainer = bag_trainer(tmp_path)
    done = trainer.run()
    losses = [row["val_loss"] for row in done.history]
    assert done.best_epoch == 1 + losses.index(min(losses))
    with torch.no_grad():
        assert -trainer.evaluate()["score"] == pytest.approx(min(losses))
    assert [p.name for p in tmp_path.glob("best-*")] == [f"best-{done.best_epoch}.safetensors"]


def test_patience_ends_a_training_early(tmp_path):
    recipe = Recipe(lr=1e-9, patience=2)
    trainer = bag_trainer(tmp_path, recipe=recipe)
    trainer.evaluate = lambda: {"score": 0.0, "val_loss": 0.0}
    assert [row["epoch"] for row in trainer.run().history] == [1, 2, 3]


def test_the_rate_warms_up_and_falls_to_zero():
    recipe = Recipe(lr=1.0, warmup=0.2)
    rates = [recipe.rate(step, 100) for step in range(101)]
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[0] < 0.1
    assert max(rates) == rates[20] == 1
    assert rates[-1] == 0


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    trainer = bag_trainer(tmp_path)
    trainer.model.head.weight.data.fill_(float("nan"))
    with pytest.raises(FlashmixError, match="not finite any more in epoch 1"):
        trainer.run()


def test_state_of_another_recipe_or_model_is_refused(tmp_path):
    bag_trainer(tmp_path).run()
    with pytest.raises(FlashmixError, match="another recipe"):
        bag_trainer(tmp_path, recipe=Recipe(lr=0.1))
    model = nn.Linear(2, 2)
    with pytest.raises(FlashmixError, match="another model"):
        checkpoint.load_state(tmp_path / STATE_FILE, model, torch.optim.AdamW(model.parameters()))


def test_a_file_that_is_not_safetensors_is_refused(tmp_path):
    path = tmp_path / STATE_FILE
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(FlashmixError, match="not safetensors"):
        bag_trainer(tmp_path)


@pytest.mark.parametrize(
    "options", [{"precision": "float16"}, {"lr": 0.0}, {"warmup": 1.0}, {"clip": 0}]
)
def test_bad_recipes_are_refused(options):
    with pytest.raises(ArgumentError):
        Recipe(**{"lr": 1e-3, **options})


def digits(**options):
    config = FinetuneConfig(
        task="digits", model="bert-tiny", **{"epochs": 1, "lr": 2e-3, "limit": 96, **options}
    )
    return Experiment(config=config, mixers=("fnet",), lengths=())


def test_digits_are_learned_well_above_chance(tmp_path, in_process):  # noqa: F811
    experiment = digits(epochs=3, limit=None)
    run_experiment(experiment, tmp_path / "run", kind="finetune", threads=1)
    (row,) = read_rows(tmp_path / "run")
    assert row["status"] == "ok"
    assert row["test_accuracy"] > 3 * CHANCE
    assert row["train_examples"] + row["val_examples"] + row["test_examples"] == 1797
    assert sum(map(sum, row["confusion"])) == row["test_examples"] == 360
    assert len(row["history"]) == 3


def test_reviews_from_pretraining_to_the_report(tmp_path, reviews, vocabulary, own_cache):  # noqa: F811
    import flashmix
    from flashmix.report import write_report

    mixers = ("attention", "spectral,attention")
    pretraining = PretrainConfig(
        arch="bert-tiny",
        corpus="imdb_unsup",
        tokenizer=str(vocabulary),
        data=str(reviews),
        steps=6,
        check_every=3,
        batch_size=8,
        seq_len=16,
    )
    start = run_experiment(
        Experiment(config=pretraining, mixers=mixers, seconds=0.2),
        tmp_path / "pre",
        kind="pretrain",
        threads=1,
    )
    for row in read_rows(start):
        assert row["status"] == "ok"
        assert row["steps"] == max(1, round(200 / row["step_ms"]))
    config = FinetuneConfig(
        task="imdb",
        model=str(start),
        data=str(reviews),
        epochs=3,
        batch_size=8,
        seq_len=24,
        lr=2e-3,
    )
    out = run_experiment(
        Experiment(config=config, mixers=mixers, seeds=(0,), lengths=(8,), jobs=2),
        tmp_path / "run",
        kind="finetune",
        threads=1,
    )
    rows = read_rows(out)
    assert sorted((row["mixers"], row["seed"]) for row in rows) == [
        (pattern, 0) for pattern in mixers
    ]
    for row in rows:
        assert row["status"] == "ok"
        assert row["model"] == "bert-tiny"
        assert row["test_accuracy"] > 0.8
        assert row["train_seconds"] == pytest.approx(row["steps"] * row["step_ms"] / 1e3)
        assert {one["seq_len"] for one in row["inference"]} == {8, 24}
        assert set(row["baselines"]) == {"vanilla eager", "vanilla fused"}
        folder = out / row["mixers"].replace(",", "-") / f"seed-{row['seed']}"
        assert not list(folder.glob("state*")) + list(folder.glob("best*"))
        assert list((folder / "tensorboard").glob("events*"))
    model = flashmix.from_pretrained(folder / "model")
    assert model.config.hidden_dropout_prob == 0.1
    assert sum(p.numel() for p in model.parameters()) == rows[-1]["params"]
    report = write_report(out).read_text()
    assert "spectral,attention compared with attention: test accuracy differs by" in report
    assert "only the model" in report


DIGITS = ("finetune", "--task", "digits", "--mixers", "fnet", "--seeds", 1, "--lengths", "",
          "--threads", 1, "--limit", 100, "--device", "cpu")  # fmt: skip


def wait_for(path, process, there=None):
    there, deadline = there or path.exists, time.monotonic() + 120
    while not there() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    assert there(), process.communicate()


def run_alone(out, epochs):
    """A run that nothing disturbs, of the same training as ``DIGITS``."""
    experiment = digits(epochs=epochs, lr=3e-4, limit=100)
    return run_experiment(experiment, out, kind="finetune", threads=1)


def test_a_run_interrupted_and_killed_ends_with_the_result_of_one_left_alone(tmp_path):
    """Each time it goes on from the state that it had saved, and says how."""
    alone, out = run_alone(tmp_path / "alone", 12), tmp_path / "run"
    state = out / "fnet" / "seed-0" / STATE_FILE
    command = [*DIGITS, "--epochs", 12, "--out", out]
    saved = 0

    def goes_on():
        return state.exists() and state.stat().st_mtime_ns > saved

    for how in (signal.SIGINT, signal.SIGTERM):
        process = start_cli(*command)
        wait_for(state, process, goes_on)
        process.send_signal(how)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert f"flashmix finetune --resume {out}" in printed
        header, _ = checkpoint._read(state)[::-1]
        assert json.loads(header["state"])["progress"]["step"] > 0
        assert read_run(out)["finished"] is None
        command, saved = ["finetune", "--resume", out], state.stat().st_mtime_ns
    process = start_cli(*command)
    wait_for(state, process, goes_on)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not read_rows(out)
    time.sleep(1.5)  # its worker ends when it notices
    again = start_cli(*command)
    assert again.wait(120) == 0, again.communicate()
    (expected,), (found,) = read_rows(alone), read_rows(out)
    assert untimed(found) == untimed(expected)
    weights = [
        checkpoint.read_weights(folder / "fnet" / "seed-0" / "model" / "model.safetensors")
        for folder in (alone, out)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("sharing", [1, 2])
def test_two_processes_train_as_one(tmp_path, in_process, sharing):  # noqa: F811
    """Each with its part of the batch, or of every sequence."""
    environment = {"OMP_NUM_THREADS": "1", **WITHOUT_PAGE}
    two = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--master-port", "0", "--standalone", "-m", "flashmix", *map(str, DIGITS),
         "--epochs", "2", "--sequence-parallel", str(sharing), "--out", str(tmp_path / "two")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr[-2000:]
    (one,) = read_rows(run_alone(tmp_path / "alone", 2))
    (both,) = read_rows(tmp_path / "two")
    assert (both["processes"], both["sequence_parallel"]) == (2, sharing)
    assert both["steps"] == one["steps"]
    # Dropout draws other numbers in each process, all else is the same.
    for ours, theirs in zip(both["history"], one["history"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.02)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sequence_parallel": 2}, "must divide the number of processes, which is 1"),
        ({"sequence_parallel": 0}, "must be at least 1, got 0"),
        ({"sequence_parallel": 2, "pooling": "cls"}, "goes with --pooling mean"),
        ({"sequence_parallel": 2, "compile": True}, "without --compile"),
    ],
)
def test_sequences_that_cannot_be_spread_are_refused(tmp_path, options, words):
    with pytest.raises(ArgumentError, match=words):
        run_experiment(digits(**options), tmp_path / "run", kind="finetune", threads=1)


def test_a_training_that_fails_is_a_row_and_is_tried_again(tmp_path):
    out = tmp_path / "run"
    broken = replace(digits(), mixers=("fnet", "local(window=-1)"))
    run_experiment(broken, out, kind="finetune", threads=1)
    first = read_rows(out)
    assert [row["status"] for row in first] == ["ok", "error"]
    assert "window" in first[1]["error"]
    run_experiment(None, out, kind="finetune", resume=True)
    assert [row["status"] for row in read_rows(out)] == ["ok", "error", "error"]


@pytest.mark.skipif("FLASHMIX_DATA" not in os.environ, reason="FLASHMIX_DATA is not set")
def test_some_real_reviews(tmp_path, own_cache, in_process):  # noqa: F811
    data = Path(os.environ["FLASHMIX_DATA"])
    model = data / "paraphrase-minilm-l3-v2"
    if not (data / "imdb_train.parquet").exists() or not model.exists():
        pytest.skip("FLASHMIX_DATA holds no imdb_train.parquet or no paraphrase-minilm-l3-v2")
    config = FinetuneConfig(
        task="imdb", model=str(model), epochs=3, batch_size=16, seq_len=64, limit=160, lr=3e-4
    )
    experiment = Experiment(config=config, mixers=("attention",), lengths=())
    out = run_experiment(experiment, tmp_path / "run", kind="finetune", threads=1)
    for row in read_rows(out):
        assert row["status"] == "ok"
        assert row["test_accuracy"] > 0.6


def test_the_mean_of_real_tokens_stands_where_heads_read(tmp_path):
    import flashmix
    from flashmix.hf import pool_mean

    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    flashmix.swap(model, "fnet,attention")
    ids, mask = torch.randint(50, (3, 9)), torch.arange(9) < torch.tensor([[9], [4], [6]])
    with torch.no_grad():
        hidden = model.bert(ids, attention_mask=mask).last_hidden_state
        first = model(input_ids=ids, attention_mask=mask).logits
        pool_mean(pool_mean(model))
        found = model(input_ids=ids, attention_mask=mask).logits
        means = torch.stack([h[m].mean(0) for h, m in zip(hidden, mask, strict=True)])
        expected = model.classifier(model.bert.pooler(means[:, None]))
        longer = model(
            input_ids=torch.nn.functional.pad(ids, (0, 3)),
            attention_mask=torch.nn.functional.pad(mask, (0, 3)),
        ).logits
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(longer, found)
    assert not torch.allclose(found, first)
    model.save_pretrained(tmp_path)
    again = flashmix.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids, attention_mask=mask).logits, found)

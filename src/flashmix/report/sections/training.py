"""Suites finetune and pretrain: how the models were trained, their learning rates and curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from flashmix.bench.schema import TRAININGS
from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.bench.training.search import best_rates, undecided
from flashmix.report.analysis.training import finished
from flashmix.report.sections import finetune
from flashmix.report.sections.finetune import mean_cell
from flashmix.report.tables import (
    Section,
    Table,
    points,
)

SUITES = TRAININGS


def headline(run: dict[str, Any], rows: Sequence[Row]) -> str:
    """What was trained, on what."""
    config, machine = run["experiment"]["config"], run.get("machine", {})
    what = (
        f"{config['model']} on {config['task']}"
        if run["suite"] == "finetune"
        else f"{config['arch']} on {config['corpus']}"
    )
    done = sum(row["status"] == "ok" for row in rows)
    return (
        f"{what}, on {machine.get('gpu') or machine.get('cpu') or 'an unnamed machine'}. "
        f"{done} trainings of {len(run['experiment']['mixers'])} patterns."
    )


def sections(run: dict[str, Any], rows: Sequence[Row]) -> list[Section]:
    """The tables of a run."""
    if run["suite"] == "pretrain":
        return [_results(rows), _rates(run), _curves(rows)]
    before, after = finetune.sections(run, rows)
    return [*before, _rates(run), _curves(rows), *after]


def method_section(run: dict[str, Any], rows: Sequence[Row]) -> Section:
    """How the models were trained."""
    config = run["experiment"]["config"]
    rates = run["experiment"].get("rates", ())
    chosen = "each model's own" if len(rates) > 1 else f"{config['lr']:g}"
    text = [
        f"AdamW, peak learning rate {chosen} after {100 * config['warmup']:g} % of the "
        f"steps, then falling linearly to zero; batch {config['batch_size']}, at most "
        f"{config['seq_len']} tokens, {config['precision']}.",
    ]
    if run["suite"] == "finetune":
        text.append(
            f"{config['epochs']} epochs; the best on the validation split "
            f"({100 * config['val_share']:g} % of the training data, the same for every seed) is "
            "tested, once. Batches hold examples of similar length, so that there is little "
            "padding."
        )
    if config.get("unpad"):
        text.append(
            "Padding is removed before the first layer, of all models but vanilla ones; inference "
            "is timed on inputs without padding."
        )
    if parts := run.get("parts"):
        sources = "; ".join(", ".join(part) for part in parts)
        text.append(
            f"Merged from {len(parts)} runs, costs measured in turn within each: {sources}."
        )
    if any(row.get("train_seconds_by", "clock") != "clock" for row in rows):
        text.append(
            "Several trainings shared the device, so training times are not wall-clock times: they "
            "are the number of steps times the time of a step measured alone."
        )
    return Section("Method", text)


def _results(rows: Sequence[Row]) -> Section:
    """What each pattern reached in pretraining."""
    return Section(
        "Pretraining",
        [
            "Loss (nats) and accuracy on hidden tokens of held-out text, means over the seeds. "
            "Step: a training step measured alone, in ms."
        ],
        Table(
            ["mixers", "loss", "accuracy", "steps", "step", "training (s)", "parameters", "seeds"],
            [
                [
                    model.mixers,
                    f"{statistics.fmean(model.values('val_loss')):.3f}",
                    points(model.interval("val_accuracy")),
                    f"{statistics.fmean(model.values('steps')):,.0f}",
                    mean_cell(model, "step_ms"),
                    mean_cell(model, "train_seconds"),
                    f"{model.ok[0]['params']:,}",
                    model.seeds,
                ]
                for model in finished(rows)
            ],
        ),
    )


def _curves(rows: Sequence[Row]) -> Section:
    """Losses and validation accuracy by epoch."""
    body = []
    for model in finished(rows):
        for epoch in model.ok[0]["history"]:
            body.append(
                [
                    model.mixers,
                    str(epoch["epoch"]),
                    f"{epoch['train_loss']:.4f}",
                    f"{epoch['val_loss']:.4f}",
                    points(Interval(epoch["val_accuracy"], math.nan, math.nan)),
                ]
            )
    return Section(
        "Training, epoch by epoch",
        ["The first seed of each; the others are in results.jsonl."],
        Table(["mixers", "epoch", "training loss", "validation loss", "validation accuracy"], body),
    )


def rate_section(rows: Sequence[Row], rates: Sequence[float], *, accuracy: bool) -> Section:
    """Validation by pattern and rate, with the rate chosen.

    Args:
        rows: of search.jsonl; the last of a pattern and rate counts.
        rates: those that were tried, in order; with fewer than two there was no search.
        accuracy: whether accuracy decided, or the loss on hidden tokens.
    """
    if len(rates) < 2 or not rows:
        return Section("")
    trials = {(row["mixers"], row["lr"]): row for row in rows}
    best = best_rates(list(trials.values()), rates)
    chosen = {mixers: f"{rate:g}" for mixers, rate in best.items()}
    open_trials = undecided(list(dict.fromkeys(row["mixers"] for row in rows)), rates, rows)
    chosen |= {mixers: "undecided" for mixers, _, _ in open_trials}
    body = []
    for mixers in dict.fromkeys(row["mixers"] for row in rows):
        cells = [_cell(trials.get((mixers, rate)), accuracy) for rate in rates]
        body.append([mixers, *cells, chosen.get(mixers, "-")])
    what = "Validation accuracy" if accuracy else "Loss on hidden tokens of held-out text"
    return Section(
        "Learning rates",
        [
            f"{what} with the first seed, by peak learning rate. The best rate was used for all "
            "seeds; no trial read the test set.",
            *(["Undecided: a trial has no result; resume the run."] if open_trials else []),
        ],
        Table(["mixers", *(f"{rate:g}" for rate in rates), "chosen"], body),
    )


def _cell(row: Row | None, accuracy: bool) -> str:
    if row is None or row["status"] != "ok":
        return str(row["status"]).upper() if row else "-"
    return f"{100 * row['val_accuracy']:.2f} %" if accuracy else f"{row['val_loss']:.3f}"


def _rates(run: dict[str, Any]) -> Section:
    rates = run["experiment"].get("rates", ())
    return rate_section(run.get("search", ()), rates, accuracy=run["suite"] == "finetune")

"""The report of a fine-tuning or pretraining run: accuracy beside cost, each mixer's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flashmix.bench.schema import TRAININGS
from flashmix.bench.store import Row
from flashmix.report import training_tables as tables
from flashmix.report.rates import rate_section
from flashmix.report.tables import Section, number
from flashmix.report.trained import against_base, kept, mean, points

SUITES = TRAININGS


def summary(run: dict[str, Any], rows: Sequence[Row]) -> Section:
    """The one table of a run."""
    pretrained = run["suite"] == "pretrain"
    return tables.pretraining_section(rows) if pretrained else tables.accuracy_section(rows)


def result_sections(run: dict[str, Any], rows: Sequence[Row]) -> list[Section]:
    """The tables of a run."""
    if run["suite"] == "pretrain":
        return [summary(run, rows), _rates(run), tables.curve_section(rows)]
    return [
        summary(run, rows),
        tables.difference_section(rows),
        tables.cost_section(rows),
        tables.inference_section(rows),
        _rates(run),
        tables.curve_section(rows),
        tables.confusion_section(rows),
        *tables.disagreement_sections(run.get("examples")),
    ]


def statements(rows: Sequence[Row]) -> list[str]:
    """What the run bears out about each pattern against attention."""
    found = []
    for one, base, gap in against_base(rows):
        if math.isnan(gap.low):
            verdict = "differs by one seed's"
        elif gap.low > 0:
            verdict = "is more accurate, by"
        elif gap.high < 0:
            verdict = "is less accurate, by"
        else:
            verdict = "is not told apart in accuracy; it differs by"
        cost = []
        for name, what in (("train_seconds", "trains"), ("infer_ms", "infers")):
            if one.values(name) and base.values(name):
                cost.append(f"{what} {number(mean(base, name) / mean(one, name))}x as fast")
        found.append(
            f"{one.mixers} against attention: it {verdict} {points(gap, ' points')}, keeps "
            f"{kept(one, base)} of the accuracy" + (f", and {' and '.join(cost)}." if cost else ".")
        )
        missing = [
            f"{model.seeds} seeds of {model.mixers}"
            for model in (one, base)
            if len(model.rows) < model.asked
        ]
        if missing:
            found[-1] += f" Only {' and '.join(missing)} finished."
    return found


def _rates(run: dict[str, Any]) -> Section:
    rates = run["experiment"].get("rates", ())
    return rate_section(run.get("search", ()), rates, accuracy=run["suite"] == "finetune")


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
            "tested, once. Batches hold examples of about one length, so that there is hardly any "
            "padding."
        )
    if parts := run.get("parts"):
        told = "; ".join(", ".join(part) for part in parts)
        text.append(f"Put together from {len(parts)} runs, costs in turn within each: {told}.")
    if any(row.get("train_seconds_by", "clock") != "clock" for row in rows):
        text.append(
            "Several trainings shared the device, so training times are not the clock's: they are "
            "the steps taken times the time of a step measured alone."
        )
    return Section("Method", text)


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

"""The tables of a fine-tuning or pretraining run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.report.tables import Section, Table, number
from flashmix.report.trained import BASE, against_base, kept, models, points

VANILLA = ("vanilla eager", "vanilla fused")


def _value(value: Interval | None) -> str:
    return "-" if value is None else number(value.value)


def _times(base: float | None, value: float | None) -> str:
    return f"{number(base / value)}x" if base and value else "-"


def _vanilla(rows: Sequence[Row], name: str) -> dict[str, float | None]:
    for row in rows:
        if baselines := row.get("baselines"):
            return {label: baselines.get(label, {}).get(name) for label in VANILLA}
    return dict.fromkeys(VANILLA)


def accuracy_section(rows: Sequence[Row]) -> Section:
    """What each pattern reached on the task."""
    return Section(
        "Accuracy",
        [
            "Mean over the seeds with its 95 % interval (Student's t). F1 is averaged evenly over "
            "the classes. Inference: a batch of the longest inputs."
        ],
        Table(
            [
                "mixers",
                "test accuracy",
                "F1",
                "validation",
                "training (s)",
                "inference (ms)",
                "parameters",
                "seeds",
            ],
            [
                [
                    one.mixers,
                    points(one.mean("test_accuracy")),
                    points(one.mean("f1")),
                    points(one.mean("val_accuracy")),
                    _value(one.mean("train_seconds")),
                    _value(one.mean("infer_ms")),
                    f"{one.rows[0]['params']:,}",
                    one.seeds,
                ]
                for one in models(rows)
            ],
        ),
    )


def cost_section(rows: Sequence[Row]) -> Section:
    """Time and memory of each pattern beside the vanilla model's."""
    fields = {
        "step_ms": "step_ms",
        "infer_ms": "infer_ms",
        "peak_memory_mb": "train_peak_memory_mb",
    }
    vanilla = {name: _vanilla(rows, own) for name, own in fields.items()}
    body = []
    for one in models(rows):
        line = [one.mixers]
        for name in fields:
            value = next(iter(one.values(name)), None)
            line.append("-" if value is None else number(value))
            if name != "peak_memory_mb":
                line += [_times(vanilla[name][label], value) for label in VANILLA]
        body.append(line)
    for label in VANILLA:
        if vanilla["infer_ms"][label] is not None:
            step, infer, memory = (number(vanilla[name][label] or math.nan) for name in fields)
            body.append([label, step, "-", "-", infer, "-", "-", memory])
    return Section(
        "Cost",
        [
            "Measured alone and in turn. Step: a training step on the task's own batches, in ms. "
            "Inference: a batch of the longest inputs, in ms. Beside both, how many times as fast "
            "as the vanilla model with eager and with fused attention. Memory: peak of a training "
            "step in MB, beyond weights and optimizer state."
        ],
        Table(
            [
                "mixers",
                "step",
                "vs eager",
                "vs fused",
                "inference",
                "vs eager",
                "vs fused",
                "memory",
            ],
            body if any(line[1] != "-" for line in body) else [],
        ),
    )


def pretraining_section(rows: Sequence[Row]) -> Section:
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
                    one.mixers,
                    f"{statistics.fmean(one.values('val_loss')):.3f}",
                    points(one.mean("val_accuracy")),
                    f"{statistics.fmean(one.values('steps')):,.0f}",
                    _value(one.mean("step_ms")),
                    _value(one.mean("train_seconds")),
                    f"{one.rows[0]['params']:,}",
                    one.seeds,
                ]
                for one in models(rows)
            ],
        ),
    )


def difference_section(rows: Sequence[Row]) -> Section:
    """Each pattern's test accuracy against attention's."""
    return Section(
        "Against attention",
        ["Test accuracy less attention's, seed by seed, and the share of it that is kept."],
        Table(
            ["mixers", "difference (points)", "kept"],
            [
                [
                    one.mixers,
                    points(gap, ""),
                    kept(one, base),
                ]
                for one, base, gap in against_base(rows)
            ],
        ),
    )


def inference_section(rows: Sequence[Row]) -> Section:
    """Throughput and memory at several lengths."""
    measured = {
        one.mixers: one.rows[0]["inference"] for one in models(rows) if one.rows[0].get("inference")
    }
    lengths = [timed["seq_len"] for timed in next(iter(measured.values()), ())]
    return Section(
        "Inference by length",
        ["Sequences a second at N tokens without padding, and peak memory in MB."],
        Table(
            ["mixers", *(f"N = {n:,}" for n in lengths)],
            [
                [
                    mixers,
                    *(
                        f"{number(one['sequences_per_s'])}/s, {number(one['peak_memory_mb'])} MB"
                        for one in timed
                    ),
                ]
                for mixers, timed in measured.items()
            ],
        ),
    )


def curve_section(rows: Sequence[Row]) -> Section:
    """Losses and validation accuracy by epoch."""
    body = []
    for one in models(rows):
        for epoch in one.rows[0]["history"]:
            body.append(
                [
                    one.mixers,
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


def _two_classes(row: Row) -> bool:
    return [len(line) for line in row["confusion"]] == [2, 2]


def confusion_section(rows: Sequence[Row]) -> Section:
    """Right and wrong by class, of a task with two classes."""
    found = models(rows)
    if not found or not all(_two_classes(row) for one in found for row in one.rows):
        return Section("")
    cells = ["true negative", "false positive", "false negative", "true positive"]
    body = []
    for one in found:
        flat = [[count for line in row["confusion"] for count in line] for row in one.rows]
        body.append([one.mixers, *(f"{statistics.fmean(x):,.0f}" for x in zip(*flat, strict=True))])
    return Section("Confusion on the test set", ["Means over the seeds."], Table(
        ["mixers", *cells], body
    ))  # fmt: skip


def disagreement_sections(content: Mapping[str, Any] | None) -> list[Section]:
    """How many test examples only one of two models gets right, and some of them.

    ``content``: what examples.json holds, or None where there is none.
    """
    if content is None:
        return []
    pairs = [pair for pair in content["pairs"] if BASE in pair["models"]] or content["pairs"]

    def other(pair: Mapping[str, Any]) -> tuple[str, str]:
        one, two = pair["models"]
        return (two, one) if one == BASE else (one, two)

    table = Table(
        ["model", "against", "both right", "only the model", "only the other", "neither"],
        [
            [
                one,
                two,
                f"{pair['both_right']:,}",
                f"{pair['only'][one]:,}",
                f"{pair['only'][two]:,}",
                f"{pair['neither']:,}",
            ]
            for pair in pairs
            for one, two in [other(pair)]
        ],
    )
    shown = [
        [example["right"], next(m for m in pair["models"] if m != example["right"]),
         content["classes"][example["label"]], example["text"]]
        for pair in pairs[:3]
        for example in pair["examples"]
    ]  # fmt: skip
    return [
        Section(
            "Test examples that only one model gets right",
            ["A model gets an example right where most of its seeds do."],
            table,
        ),
        Section(
            "Some of them",
            ["Those on which the seeds agree most, cut short."],
            Table(["right", "wrong", "class", "text"], shown),
        ),
    ]

"""Suite finetune: accuracy beside cost, and where models disagree."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flashmix.bench.store import Row
from flashmix.report.analysis.training import (
    BASE,
    Outcome,
    accuracy,
    against_base,
    finished,
    outcomes,
)
from flashmix.report.tables import (
    Finding,
    Section,
    Table,
    number,
    points,
)

VANILLA = ("vanilla eager", "vanilla fused")


def sections(run: dict[str, Any], rows: Sequence[Row]) -> tuple[list[Section], list[Section]]:
    """The tables that stand before those of all trainings, and those that stand after them."""
    return (
        [_accuracy(rows), _differences(rows), _cost(rows), _inference(rows)],
        [_confusion(rows), *_disagreements(run.get("examples"))],
    )


def mean_cell(model: Outcome, name: str) -> str:
    """The mean of a field over the seeds."""
    value = model.mean(name)
    return "-" if value is None else number(value)


def _kept(model: Outcome, base: Outcome) -> str:
    """The share of the base's test accuracy that a pattern keeps."""
    whole, part = base.mean("test_accuracy"), model.mean("test_accuracy")
    return "-" if not whole or part is None else f"{100 * part / whole:.1f} %"


def _times(base: float | None, value: float | None) -> str:
    return f"{number(base / value)}x" if base and value else "-"


def _vanilla(rows: Sequence[Row], name: str) -> dict[str, float | None]:
    for row in rows:
        if baselines := row.get("baselines"):
            return {label: baselines.get(label, {}).get(name) for label in VANILLA}
    return dict.fromkeys(VANILLA)


def _accuracy(rows: Sequence[Row]) -> Section:
    """What each pattern reached on the task."""
    return Section(
        "Accuracy",
        [
            "Mean over the seeds with its 95 % interval (Student's t). F1 is the macro average "
            "over classes. Inference: a batch of the longest inputs."
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
                    model.mixers,
                    points(model.interval("test_accuracy")),
                    points(model.interval("f1")),
                    points(model.interval("val_accuracy")),
                    mean_cell(model, "train_seconds"),
                    mean_cell(model, "infer_ms"),
                    f"{model.ok[0]['params']:,}",
                    model.seeds,
                ]
                for model in finished(rows)
            ],
        ),
    )


def _cost(rows: Sequence[Row]) -> Section:
    """Time and memory of each pattern beside the vanilla model's."""
    fields = {
        "step_ms": "step_ms",
        "infer_ms": "infer_ms",
        "peak_memory_mb": "train_peak_memory_mb",
    }
    vanilla = {name: _vanilla(rows, own) for name, own in fields.items()}
    body = []
    for model in finished(rows):
        line = [model.mixers]
        for name in fields:
            value = next(iter(model.values(name)), None)
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
            "Models timed in turn, with nothing else running. Step: a training step on the task's "
            "own batches, in ms. Inference: a batch of the longest inputs, in ms. After each, the "
            "speed relative to the vanilla model with eager and with fused attention. Memory: peak "
            "of a training step in MB, beyond weights and optimizer state."
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


def _differences(rows: Sequence[Row]) -> Section:
    """Each pattern's test accuracy against attention's."""
    return Section(
        "Against attention",
        [
            "Test accuracy minus attention's, paired by seed, and the share of attention's that "
            "is kept."
        ],
        Table(
            ["mixers", "difference (points)", "kept"],
            [
                [
                    model.mixers,
                    points(gap, ""),
                    _kept(model, base),
                ]
                for model, base, gap in against_base(rows)
            ],
        ),
    )


def _inference(rows: Sequence[Row]) -> Section:
    """Throughput and memory at several lengths."""
    measured = {
        model.mixers: model.ok[0]["inference"]
        for model in finished(rows)
        if model.ok[0].get("inference")
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
                        f"{number(at['sequences_per_s'])}/s, {number(at['peak_memory_mb'])} MB"
                        for at in timed
                    ),
                ]
                for mixers, timed in measured.items()
            ],
        ),
    )


def _two_classes(row: Row) -> bool:
    return [len(line) for line in row["confusion"]] == [2, 2]


def _confusion(rows: Sequence[Row]) -> Section:
    """Right and wrong by class, of a task with two classes."""
    found = finished(rows)
    if not found or not all(_two_classes(row) for model in found for row in model.ok):
        return Section("")
    cells = ["true negative", "false positive", "false negative", "true positive"]
    body = []
    for model in found:
        flat = [[count for line in row["confusion"] for count in line] for row in model.ok]
        body.append(
            [model.mixers, *(f"{statistics.fmean(x):,.0f}" for x in zip(*flat, strict=True))]
        )
    return Section("Confusion on the test set", ["Means over the seeds."], Table(
        ["mixers", *cells], body
    ))  # fmt: skip


def _disagreements(content: Mapping[str, Any] | None) -> list[Section]:
    """How many test examples only one of two models gets right, and some of them.

    ``content``: what examples.json holds, or None where there is none.
    """
    if content is None:
        return []
    pairs = [pair for pair in content["pairs"] if BASE in pair["models"]] or content["pairs"]

    def other(pair: Mapping[str, Any]) -> tuple[str, str]:
        first, second = pair["models"]
        return (second, first) if first == BASE else (first, second)

    table = Table(
        ["model", "against", "both right", "only the model", "only the other", "neither"],
        [
            [
                first,
                second,
                f"{pair['both_right']:,}",
                f"{pair['only'][first]:,}",
                f"{pair['only'][second]:,}",
                f"{pair['neither']:,}",
            ]
            for pair in pairs
            for first, second in [other(pair)]
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
            "Some of these examples",
            ["Those on which the seeds agree most; texts are shortened."],
            Table(["right", "wrong", "class", "text"], shown),
        ),
    ]


def statements(rows: Sequence[Row]) -> list[str]:
    """What the run supports about each pattern relative to attention."""
    found = []
    for model, base, gap in against_base(rows):
        if math.isnan(gap.low):
            verdict = "from one seed"
        elif gap.low > 0:
            verdict = "significantly higher"
        elif gap.high < 0:
            verdict = "significantly lower"
        else:
            verdict = "no significant difference"
        cost = []
        for name, what in (("train_seconds", "trains"), ("infer_ms", "infers")):
            ours, theirs = model.mean(name), base.mean(name)
            if ours and theirs:
                cost.append(f"{what} {number(theirs / ours)}x as fast")
        found.append(
            f"{model.mixers} compared with attention: test accuracy differs by "
            f"{points(gap, ' points')}, {verdict}; it keeps {_kept(model, base)} of the accuracy"
            + (f" and {' and '.join(cost)}." if cost else ".")
        )
        missing = [
            f"{short.seeds} seeds of {short.mixers}"
            for short in (model, base)
            if len(short.ok) < short.asked
        ]
        if missing:
            found[-1] += f" Only {' and '.join(missing)} finished."
    return found


LEAST_LEAD = 0.02
"""A smaller lead in time is no finding: often all train for the same time."""


def findings(rows: Sequence[Row]) -> list[Finding]:
    """The most accurate model, the fastest, and the fastest that keeps nearly all accuracy."""
    scored = [model for model in outcomes(rows) if model.mean(accuracy) is not None]
    if not scored:
        return []
    task = scored[0].task
    scored = [model for model in scored if model.task == task]
    score = {id(model): model.mean(accuracy) or 0.0 for model in scored}
    best = max(scored, key=lambda model: score[id(model)])
    result = [
        Finding(
            f"{100 * score[id(best)]:.1f} %",
            f"accuracy on {task}, the highest: {best.mixers}, mean of {len(best.ok)} "
            f"{'seed' if len(best.ok) == 1 else 'seeds'}.",
            best.ok,
        )
    ]
    for name, what in (("infer_ms", "inference"), ("train_seconds", "training")):
        base = next(
            (model for model in scored if set(model.mixers.split(",")) == {"attention"}), None
        )
        timed = [model for model in scored if model.mean(name)]
        if base is None or base not in timed or len(timed) < 2:
            continue
        others = [model for model in timed if model is not base]
        fastest = min(others, key=lambda model: model.mean(name) or math.inf)
        times = (base.mean(name) or 0.0) / (fastest.mean(name) or math.inf)
        if abs(times - 1) < LEAST_LEAD:
            continue
        if not score[id(base)]:
            continue
        kept = 100 * score[id(fastest)] / score[id(base)]
        text = f"as fast in {what} as attention on {task}: {fastest.mixers}, with "
        text += f"{kept:.1f} % of its accuracy."
        if times < 1:
            text = f"attention's speed in {what} on {task}, the most that any mixer reaches: "
            text += f"{fastest.mixers}, with {kept:.1f} % of its accuracy."
        result.append(Finding(f"{number(times)}x", text, (*fastest.ok, *base.ok)))
    return result

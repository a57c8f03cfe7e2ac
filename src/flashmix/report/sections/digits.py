"""Accuracy on handwritten digits at equal training time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.report.analysis.training import Training, trainings
from flashmix.report.tables import Cell, Finding, Section, Table


def section(found: Sequence[Training]) -> Section:
    """Accuracy on held-out digits beside the steps that fitted in the time."""
    rows = [
        [
            training.mixer,
            Cell(
                " / ".join(f"{100 * a:.1f} %" for a in training.accuracies) or "-", *training.rows
            ),
            Cell(" / ".join(f"{steps:,}" for steps in training.steps) or "-", *training.rows),
            Cell(f"{training.params:,}" if training.accuracies else "-", *training.rows),
            ", ".join(training.failed) or "ok",
        ]
        for training in found
    ]
    seconds = min((training.seconds for training in found if training.accuracies), default=0.0)
    return Section(
        "Accuracy on handwritten digits",
        [
            f"A two-layer encoder of width 64 on 64-token images, {seconds:.0f} s of training for "
            "each mixer and seed (on the CPU: processor time of one thread), tested on 360 "
            "held-out images. One value per seed. Training time is fixed, so a mixer whose step "
            "is cheaper takes more steps."
        ],
        Table(["mixer", "held-out accuracy", "steps", "parameters", "status"], rows),
    )


def statements(rows: Sequence[Row]) -> list[str]:
    """Which mixers are more, less or as accurate as attention."""
    found = [training for training in trainings(rows) if training.accuracies]
    attention = next((training for training in found if training.mixer == "attention"), None)
    if attention is None or len(found) < 2:
        return []
    better = [o.mixer for o in found if min(o.accuracies) > max(attention.accuracies)]
    worse = [o.mixer for o in found if max(o.accuracies) < min(attention.accuracies)]
    same = [o.mixer for o in found if o.mixer not in (*better, *worse, "attention")]
    parts = [
        f"{verdict}: {', '.join(names)}"
        for verdict, names in (
            ("above attention with every seed", better),
            ("below attention with every seed", worse),
            ("no clear difference from attention (the seeds' ranges overlap)", same),
        )
        if names
    ]
    fewer = [
        f"{training.seeds} seeds of {training.mixer} finished. "
        for training in found
        if training.failed
    ]
    seeds = len(attention.accuracies) + len(attention.failed)
    return [
        f"Accuracy on digits at equal training time, {seeds} seeds: {'; '.join(parts)}. "
        f"{''.join(fewer)}"
        "One small task says nothing about language."
    ]


def findings(rows: Sequence[Row]) -> list[Finding]:
    """The most accurate mixer."""
    found = [training for training in trainings(rows) if training.accuracies]
    if len(found) < 2:
        return []
    mean = {training.mixer: statistics.fmean(training.accuracies) for training in found}
    best = max(found, key=lambda training: mean[training.mixer])
    text = f"held-out accuracy on handwritten digits at equal training time: {best.mixer}"
    text += f", mean of {best.seeds} seeds"
    attention = next((training for training in found if training.mixer == "attention"), None)
    if attention is not None and attention is not best:
        text += f". Attention: {100 * mean['attention']:.1f} %"
    used = (*best.rows, *(attention.rows if attention else ()))
    return [Finding(f"{100 * mean[best.mixer]:.1f} %", text + ".", used)]

"""Several runs side by side: the same mixers at the same lengths, a column for each run."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.report.analysis.compare import SMALLEST_CHANGE, Comparison, compare
from flashmix.report.analysis.timings import DIRECTIONS, FUSED, Sweep, comparable
from flashmix.report.analysis.training import Outcome, accuracy, is_finetuning, outcomes
from flashmix.report.tables import (
    Section,
    Table,
    direction_name,
    interval,
    number,
    speed_cell,
    time_cell,
)

Run = tuple[str, Sequence[Row]]


def beside_sections(runs: Sequence[Run]) -> list[Section]:
    """What ``runs``, as (name, rows), have in common; changes where two hold the same cases."""
    found: list[Section | None] = []
    cases = [(name, [row for row in rows if not is_finetuning(row)]) for name, rows in runs]
    if len(cases) == 2:
        comparison = compare(cases[0][1], cases[1][1])
        if comparison.changes or comparison.broken:
            found.append(comparison_section(comparison))
    for subject in ("mixer", "encoder"):
        for direction in (*DIRECTIONS, "backward", "train_step"):
            sweeps = [(name, Sweep(comparable(rows, subject), direction)) for name, rows in cases]
            found.append(_times(sweeps))
    found.append(_accuracies(runs))
    return [section for section in found if section is not None]


def _times(sweeps: Sequence[tuple[str, Sweep]]) -> Section | None:
    """Times and speed against fused attention of what every run measured."""
    first = sweeps[0][1]
    shared = [
        (label, n)
        for label in first.labels
        for n in first.seq_lens
        if all(sweep.row(label, n) is not None for _, sweep in sweeps)
    ]
    if not shared:
        return None
    body = []
    for label, n in shared:
        rows = [sweep.cells[label][n] for _, sweep in sweeps]
        fused = [sweep.row(FUSED, n) for _, sweep in sweeps]
        body.append(
            [
                label,
                f"{n:,}",
                *map(time_cell, rows),
                *(speed_cell(row, base) for row, base in zip(rows, fused, strict=True)),
            ]
        )
    columns = ["mixer", "N", *(f"{name} (ms)" for name, _ in sweeps)]
    columns += [f"vs fused, {name}" for name, _ in sweeps]
    direction = direction_name(first.direction)
    shapes = "; ".join(f"{name}: {_shape(sweep)}" for name, sweep in sweeps)
    return Section(
        f"Side by side, {direction}",
        [f"Median and quartiles. {shapes}."],
        Table(columns, body),
    )


def _shape(sweep: Sweep) -> str:
    row = next(row for label in sweep.labels for row in sweep.cells[label].values())
    return f"batch {row['batch']}, width {row['dim']}, {row['dtype']}"


def _accuracies(runs: Sequence[Run]) -> Section | None:
    """Accuracy of the models that every run fine-tuned."""
    found: list[dict[tuple[str, str, str], Outcome]] = [
        {(outcome.task, outcome.model, outcome.mixers): outcome for outcome in outcomes(rows)}
        for _, rows in runs
    ]
    shared = [key for key in found[0] if all(key in models for models in found)]
    if not shared:
        return None
    body = []
    for key in shared:
        means = [models[key].mean(accuracy) for models in found]
        times = [models[key].mean("infer_ms") for models in found]
        body.append(
            [
                key[2],
                *key[:2],
                *("-" if mean is None else number(100 * mean) for mean in means),
                *("-" if time is None else number(time) for time in times),
            ]
        )
    columns = ["mixers", "task", "model", *(f"accuracy (%), {name}" for name, _ in runs)]
    columns += [f"inference (ms), {name}" for name, _ in runs]
    return Section("Side by side, fine-tuning", ["Means over seeds."], Table(columns, body))


def comparison_section(comparison: Comparison) -> Section:
    """The significant changes as a table, and what was not compared."""
    body: list[Sequence[str]] = [
        [
            _name(change.before),
            number(change.before["median_ms"]),
            number(change.after["median_ms"]),
            interval(change.time),
        ]
        for change in comparison.significant
    ]
    body += [
        [_name(a), a["status"].upper(), b["status"].upper(), "-"] for a, b in comparison.broken
    ]
    text = [
        f"{len(comparison.changes)} cases compared, {len(comparison.significant)} of which changed "
        f"by more than {100 * SMALLEST_CHANGE:.0f} % (the whole interval)."
    ]
    for rows, which in ((comparison.only_before, "first"), (comparison.only_after, "second")):
        if rows:
            text.append(f"{len(rows)} cases are in the {which} run only.")
    columns = ["case", "before (ms)", "after (ms)", "after / before"]
    return Section("Changes", text, Table(columns, body))


def _name(row: Row) -> str:
    op = f"{row['op']}: " if row.get("op") else ""
    sizes = "".join(f", {k} {row[k]}" for k in ("window", "topk", "modes") if row.get(k))
    shape = f"[{row['batch']}, {row['seq_len']}, {row['dim']}]"
    return f"{op}{row['label']} {shape}{sizes}, {row['direction']}, {row['dtype']}"

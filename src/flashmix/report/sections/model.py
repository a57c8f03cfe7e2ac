"""Suite model: whole encoders as called, relative to the vanilla SDPA model padded alike."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis.models import VANILLA, model_shape, vanilla
from flashmix.report.analysis.timings import time_ratio
from flashmix.report.tables import Cell, Section, Table

NAMES = {
    "inference": "Inference",
    "inference_b1": "Inference, a batch of one",
    "train_step": "Training step",
}


def sections(rows: Sequence[Row]) -> list[Section]:
    """A table for each direction, model, shape and mode, full and padded apart."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.get("model"):
            groups.setdefault((row["direction"], model_shape(row)), []).append(row)
    found = []
    for (direction, shape), members in groups.items():
        body = [_line(members, row) for row in members]
        columns = ["mixers", "time (ms)", "vs vanilla SDPA", "real tokens/s", "peak MB"]
        found.append(Section(f"{NAMES[direction]}, {shape}", table=Table(columns, body)))
    return found


def _line(members: Sequence[Row], row: Row) -> list[str]:
    if row["status"] != "ok":
        return [row["label"], tables.status_cell(row), "-", "-", "-"]
    return [
        row["label"],
        tables.time_cell(row),
        tables.speed_cell(row, vanilla(members, row)),
        Cell(tables.number(row["tokens_per_s"]), row),
        tables.memory_cell(row),
    ]


def statements(rows: Sequence[Row]) -> list[str]:
    """Whether each model is faster than the vanilla SDPA one, shape by shape."""
    found = []
    models = [row for row in rows if row.get("model") and row["status"] == "ok"]
    for row in models:
        base = vanilla(models, row)
        if base is None or row is base:
            continue
        value = time_ratio(base, row)
        what = f"{NAMES[row['direction']]}, {model_shape(row)}: {row['label']}"
        if value.low > 1:
            verdict = f"is {tables.interval(value)} as fast as {VANILLA}."
        elif value.high < 1:
            verdict = f"is not faster than {VANILLA}: not supported ({tables.interval(value)})."
        else:
            verdict = f"and {VANILLA} show no significant difference ({tables.interval(value)})."
        found.append(f"{what} {verdict}")
    return found

"""Suite profile: a model's swaps and alternatives, where its time goes, the ceiling by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashmix.bench.profiling.parts import PARTS
from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis import profile
from flashmix.report.analysis.profile import Group
from flashmix.report.tables import Cell, Section, Table

PART_NAMES = {
    "mixing": "mixing",
    "projections": "projections",
    "mlp": "MLP",
    "rest": "rest",
}


def sections(run: dict[str, Any], rows: Sequence[Row]) -> list[Section]:
    """The alternatives by group, the parts of their time, and the ceiling by length."""
    price = (run.get("grid") or {}).get("price_per_hour")
    groups = profile.compared(rows)
    found = [_alternatives(group, price) for group in groups]
    found += [_parts(group) for group in groups if group.direction == "inference"]
    return [*found, _lengths(rows)]


def _alternatives(group: Group, price: float | None) -> Section:
    columns = ["", "time (ms)", "vs vanilla", "tokens/s", "peak MB", "params", "training"]
    priced = price is not None and group.direction != "train_step"
    body = [_line(group, row, price if priced else None) for row in group.rows]
    if priced:
        columns.append("cost / million")
    text = [
        f"vs vanilla: times as fast as {(group.base or group.rows[0])['label']}. tokens/s: real "
        "tokens. peak MB: tensors allocated in one call, not known of another engine. training: "
        "whether the outputs are others until the model is trained."
        + (" cost / million: of a million texts, at the price given." if priced else "")
    ]
    return Section(group.name, text, Table(columns, body))


def _line(group: Group, row: Row, price: float | None) -> list[str]:
    trained = "yes" if profile.needs_training(row) else "no"
    if row["status"] != "ok":
        dashes = ["-"] * (4 if price is None else 5)
        return [row["label"], tables.status_cell(row), *dashes[:4], trained, *dashes[4:]]
    found = [
        row["label"],
        tables.time_cell(row),
        tables.speed_cell(row, group.base),
        Cell(tables.number(row["tokens_per_s"]), row),
        "-" if row.get("peak_mb") is None else tables.memory_cell(row),
        Cell(f"{tables.number(row['params'] / 1e6)} M", row),
        trained,
    ]
    if price is not None:
        found.append(Cell(tables.number(1e6 * price / profile.texts_per_hour(row)), row))
    return found


def _parts(group: Group) -> Section:
    """Shares of each part, in ms of the median: they sum to it."""
    body = []
    for row in group.ok:
        if shares := row.get("parts"):
            times = [Cell(_part(row, shares[part]), row) for part in PARTS]
            body.append([row["label"], tables.time_cell(row), *times])
    columns = ["", "time (ms)", *(f"{PART_NAMES[part]} (ms)" for part in PARTS)]
    text = [
        "mixing: what grows with N^2 in attention, or the mixer in its place. projections: the "
        "linear maps to q, k and v and from the heads. rest: embeddings, norms, residuals, and "
        "Python."
    ]
    return Section(f"Where the time goes, {group.shape}", text, Table(columns, body))


def _part(row: Row, share: float) -> str:
    return f"{tables.number(share * row['median_ms'])} ({100 * share:.0f} %)"


def _lengths(rows: Sequence[Row]) -> Section:
    """How the ceiling grows with N, beside what needs no training."""
    body = []
    for group in profile.by_length(rows):
        free, int8 = group.named(profile.FREE), group.named(profile.INT8)
        if group.base is None:
            continue
        shares = group.base.get("parts")
        body.append(
            [
                f"{group.case.seq_len:,}",
                f"{group.case.batch}",
                tables.time_cell(group.base),
                Cell(f"{100 * shares['mixing']:.0f} %", group.base) if shares else "-",
                "-" if free is None else tables.speed_cell(free, group.base),
                "-" if int8 is None else tables.speed_cell(int8, group.base),
            ]
        )
    columns = ["N", "batch", "vanilla (ms)", "mixing", "mixing free", "int8"]
    return Section("The ceiling by length, full batches", table=Table(columns, body))

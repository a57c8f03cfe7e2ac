"""The implementations that ran, where they are not simply those asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flashmix.bench.store import Row
from flashmix.ops import OPERATORS
from flashmix.report.finetuning import is_finetuning, mixers_name
from flashmix.report.tables import Cell, Section, Table

TITLE = "Implementations that ran"


def implementation_section(rows: Sequence[Row]) -> Section:
    """By mixer, direction and op: what ran, where "auto" chose or rows differ.

    A row whose implementation was asked for by name, and ran, is left out.
    """
    measured = [row for row in rows if row.get("status", "ok") == "ok"]
    silent = sum("impl_ran" not in row for row in measured)
    if silent and silent == len(measured):
        return Section(
            TITLE,
            ["The rows do not say: they were measured by a version that did not record it."],
        )
    groups: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for row in measured:
        for op, names in (row.get("impl_ran") or {}).items():
            key = (*_name(row), op)
            groups.setdefault(key, {}).setdefault(" and ".join(names), []).append(row)
    body = []
    for (label, direction, op), by_names in groups.items():
        every = [row for some in by_names.values() for row in some]
        if any(list(by_names) != [_asked(row, op)] for row in every):
            body.append([label, direction, op, Cell(_told(by_names), *every)])
    text = ["Recorded while each case was measured."]
    if silent:
        text.append(f"{silent} rows do not say: an older version measured them.")
    return Section(TITLE, text, Table(["mixer", "direction", "op", "implementation"], body))


def _name(row: Row) -> tuple[str, str]:
    if is_finetuning(row):
        return mixers_name(row), "training"
    return row["label"], row["direction"].replace("_", " + ")


def _asked(row: Row, op: str) -> str:
    """The implementation that the row asked for, by its own name."""
    asked = str(row.get("impl", "auto"))
    return OPERATORS[op].aliases.get(asked, asked) if op in OPERATORS else asked


def _told(by_names: dict[str, list[Row]]) -> str:
    if len(by_names) == 1:
        return next(iter(by_names))
    return "; ".join(f"{names} ({_lengths(rows)})" for names, rows in by_names.items())


def _lengths(rows: Iterable[Row]) -> str:
    lengths = sorted({row["seq_len"] for row in rows if "seq_len" in row})
    return "N = " + ", ".join(f"{n:,}" for n in lengths)

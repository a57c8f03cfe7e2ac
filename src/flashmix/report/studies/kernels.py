"""Suite kernels: every op against what a user would otherwise run."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.case import COPY
from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis import DIRECTIONS
from flashmix.report.sparse import sparse_sections
from flashmix.report.tables import Cell, Section, Table, number


def sections(rows: Sequence[Row]) -> list[Section]:
    """Each op's contenders by shape: time, multiple of the copy, and speed against each other."""
    found = []
    for op in dict.fromkeys(row["op"] for row in rows):
        for direction, name in DIRECTIONS.items():
            part = [row for row in rows if row["op"] == op and row["direction"] == direction]
            if part:
                found.append(_kernel_section(op, name, part))
    return [*found, *sparse_sections(rows)]


def _kernel_section(op: str, direction: str, rows: Sequence[Row]) -> Section:
    groups: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row[k] for k in ("batch", "seq_len", "dim", "window", "topk", "modes"))
        groups.setdefault(key, {})[row["label"]] = row
    labels = list(dict.fromkeys(row["label"] for row in rows if row["label"] != COPY))
    body = []
    for key, cells in groups.items():
        copy = cells.get(COPY)
        line = [
            _shape(key),
            Cell(number(copy["median_ms"]), copy) if copy and copy["status"] == "ok" else "-",
        ]
        body.append(line + [_against_floor(cells.get(label)) for label in labels])
    text = ["Medians, and multiples of the time to copy the input once (twice with the backward)."]
    if any("host_ms" in row for row in rows):
        text.append("Times are the GPU's alone; issue: Python's time to issue a call.")
    return Section(
        f"{op}, {direction} (ms)",
        text,
        Table(["shape", "copy", *labels], body),
    )


def _against_floor(row: Row | None) -> str:
    """Median, and how many times the copy it takes; on a GPU also the time to issue the call."""
    if row is None or row["status"] != "ok":
        return tables.status_cell(row)
    floor = row.get("floor_ms")
    multiple = f" ({number(row['median_ms'] / floor)}x copy)" if floor else ""
    issue = f", issue {number(row['host_ms'])}" if "host_ms" in row else ""
    return Cell(f"{number(row['median_ms'])}{multiple}{issue}", row)


def _shape(key: tuple[object, ...]) -> str:
    names = ("window", "top", "modes")
    knobs = [f"{n} {v}" for n, v in zip(names, key[3:], strict=True) if v is not None]
    return ", ".join([f"[{key[0]}, {key[1]}, {key[2]}]", *knobs])

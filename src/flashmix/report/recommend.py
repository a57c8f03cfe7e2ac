"""What to use when, as far as one shape's rows bear it out."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.case import COPY
from flashmix.bench.store import Row
from flashmix.report.analysis import time_ratio
from flashmix.report.tables import Cell, Section, Table, interval, memory_cell, number, params_cell

PURPOSES = {
    "forward": "inference",
    "forward_backward": "training (forward + backward)",
}


def recommendation_section(rows: Sequence[Row]) -> Section:
    """The cheapest mixer for each purpose and precision; a tie where the intervals do not part."""
    body: list[list[str]] = []
    for direction, purpose in PURPOSES.items():
        for autocast in dict.fromkeys(row["autocast"] for row in rows):
            part = [
                row
                for row in rows
                if (row["direction"], row["autocast"], row["status"]) == (direction, autocast, "ok")
                and row["mixer"] != COPY
            ]
            if len(part) > 1:
                precision = f"autocast {autocast}" if autocast else part[0]["dtype"]
                body.append([f"speed, {purpose}, {precision}", *_fastest(part)])
                body.append([f"memory, {purpose}, {precision}", *_smallest(part)])
    sizes = {row["label"]: row for row in rows if row.get("params") and row["autocast"] is None}
    if len(sizes) > 1:
        fewest = min(sizes.values(), key=lambda row: row["params"])
        body.append(["parameters", fewest["label"], params_cell(fewest)])
    return Section(
        "Recommendations",
        [
            "What this run's rows favour at its one shape, and by how much over the next best. "
            "Accuracy is not in here: a mixer that is cheaper may also learn less."
        ],
        Table(["for", "use", "because"], body),
    )


def _fastest(part: Sequence[Row]) -> list[str]:
    first, second = sorted(part, key=lambda row: row["median_ms"])[:2]
    lead = time_ratio(second, first)
    times = f"{number(first['median_ms'])} ms against {number(second['median_ms'])} ms"
    if lead.low <= 1:
        either = f"{first['label']} or {second['label']}"
        return [either, Cell(f"not parted: {times}, {interval(lead)}", first, second)]
    because = f"{interval(lead)} as fast as {second['label']}: {times}"
    return [first["label"], Cell(because, first, second)]


def _smallest(part: Sequence[Row]) -> list[str]:
    first, second = sorted(part, key=lambda row: row["peak_mb"])[:2]
    if first["peak_mb"] == second["peak_mb"]:
        both = f"{first['label']} or {second['label']}"
        return [both, Cell(f"{memory_cell(first)} MB each", first, second)]
    because = f"{memory_cell(first)} MB against {memory_cell(second)} MB of {second['label']}"
    return [first["label"], Cell(because, first, second)]

"""Suite fourier: time, memory, shapes and parameters, and where a head's energy lies."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.case import COPY
from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis import DIRECTIONS, FUSED
from flashmix.report.recommend import recommendation_section
from flashmix.report.tables import Cell, Section, Table


def sections(rows: Sequence[Row]) -> list[Section]:
    """Time, memory, output shape and parameters by direction and precision; head magnitudes."""
    found = []
    for direction in (*DIRECTIONS, "backward"):
        for autocast in (None, "bfloat16"):
            part = [
                row for row in rows if row["direction"] == direction and row["autocast"] == autocast
            ]
            timed = [row for row in part if row["mixer"] != COPY]
            if timed:
                found.append(_fourier_table(timed, direction, autocast))
    for row in rows:
        if row["direction"] == "facts" and row["status"] == "ok":
            found.append(_head_section(row))
    return [*found, recommendation_section(rows)]


def _fourier_table(rows: Sequence[Row], direction: str, autocast: str | None) -> Section:
    fused = next((r for r in rows if r["label"].startswith(FUSED) and r["status"] == "ok"), None)
    body = []
    for row in rows:
        if row["status"] != "ok":
            body.append([row["label"], tables.status_cell(row), "-", "-", "-", "-"])
            continue
        body.append(
            [
                row["label"],
                tables.time_cell(row),
                tables.speed_cell(row, fused),
                tables.memory_cell(row),
                str(row["output_shape"]),
                tables.params_cell(row),
            ]
        )
    columns = ["mixer", "time (ms)", "vs fused", "peak memory (MB)", "output shape", "parameters"]
    precision = f"autocast {autocast}" if autocast else rows[0]["dtype"]
    return Section(f"{direction.replace('_', ' + ')}, {precision}", table=Table(columns, body))


def _head_section(row: Row) -> Section:
    facts = row["facts"]
    shares = facts["lowest_tenth_energy_share_by_head"]
    body = [[f"head {i}", Cell(f"{100 * share:.1f} %", row)] for i, share in enumerate(shares)]
    part = 100 * facts["lowest_tenth_of_frequencies"]
    return Section(
        "FFT magnitude by head",
        [
            f"Share of a head's energy in the lowest {part:.0f} % of frequencies, on "
            f"{facts['input']} through untrained projections. White noise has no preferred "
            "frequency, so about that share is expected: a claim that the layer by itself favours "
            "low frequencies is not tested by such input."
        ],
        Table(["head", "energy in the lowest tenth"], body),
    )

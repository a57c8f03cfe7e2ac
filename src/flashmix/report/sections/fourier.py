"""Suite fourier: time, memory, shapes and parameters, a head's spectrum, what to use when."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.case import COPY
from flashmix.bench.store import Row
from flashmix.report.analysis.timings import DIRECTIONS, FUSED, time_ratio
from flashmix.report.sections.claims import Published
from flashmix.report.tables import (
    Cell,
    Section,
    Table,
    interval,
    memory_cell,
    number,
    params_cell,
    speed_cell,
    status_cell,
    time_cell,
)

PUBLISHED = (
    Published(source="fourier study", label="fourier", seq_len=512, times=5),
    Published(source="fourier study", label="fourier", seq_len=512, times=3.3, measure="memory"),
)


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
        if row["direction"] == "properties" and row["status"] == "ok":
            found.append(_head_section(row))
    return [*found, recommendation_section(rows)]


def _fourier_table(rows: Sequence[Row], direction: str, autocast: str | None) -> Section:
    fused = next((r for r in rows if r["label"].startswith(FUSED) and r["status"] == "ok"), None)
    body = []
    for row in rows:
        if row["status"] != "ok":
            body.append([row["label"], status_cell(row), "-", "-", "-", "-"])
            continue
        body.append(
            [
                row["label"],
                time_cell(row),
                speed_cell(row, fused),
                memory_cell(row),
                str(row["output_shape"]),
                params_cell(row),
            ]
        )
    columns = ["mixer", "time (ms)", "vs fused", "peak memory (MB)", "output shape", "parameters"]
    precision = f"autocast {autocast}" if autocast else rows[0]["dtype"]
    return Section(f"{direction.replace('_', ' + ')}, {precision}", table=Table(columns, body))


def _head_section(row: Row) -> Section:
    properties = row["properties"]
    shares = properties["lowest_tenth_energy_share_by_head"]
    body = [[f"head {i}", Cell(f"{100 * share:.1f} %", row)] for i, share in enumerate(shares)]
    part = 100 * properties["lowest_tenth_of_frequencies"]
    return Section(
        "FFT magnitude by head",
        [
            f"Share of a head's energy in the lowest {part:.0f} % of frequencies, on "
            f"{properties['input']} through untrained projections. White noise has no preferred "
            "frequency, so about that share is expected: such input cannot test a claim that the "
            "layer by itself favours low frequencies."
        ],
        Table(["head", "energy in the lowest tenth"], body),
    )


PURPOSES = {
    "forward": "inference",
    "forward_backward": "training (forward + backward)",
}


def recommendation_section(rows: Sequence[Row]) -> Section:
    """The cheapest mixer for each purpose and precision, or two that do not differ clearly."""
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
            "The best mixer for each purpose at this run's one shape, and its lead over the second "
            "best. Accuracy is not considered: a cheaper mixer may also learn less."
        ],
        Table(["for", "use", "because"], body),
    )


def _fastest(part: Sequence[Row]) -> list[str]:
    first, second = sorted(part, key=lambda row: row["median_ms"])[:2]
    lead = time_ratio(second, first)
    times = f"{number(first['median_ms'])} ms against {number(second['median_ms'])} ms"
    if lead.low <= 1:
        either = f"{first['label']} or {second['label']}"
        return [
            either,
            Cell(f"no significant difference: {times}, {interval(lead)}", first, second),
        ]
    because = f"{interval(lead)} as fast as {second['label']}: {times}"
    return [first["label"], Cell(because, first, second)]


def _smallest(part: Sequence[Row]) -> list[str]:
    first, second = sorted(part, key=lambda row: row["peak_mb"])[:2]
    if first["peak_mb"] == second["peak_mb"]:
        both = f"{first['label']} or {second['label']}"
        return [both, Cell(f"{memory_cell(first)} MB each", first, second)]
    because = f"{memory_cell(first)} MB against {memory_cell(second)} MB of {second['label']}"
    return [first["label"], Cell(because, first, second)]

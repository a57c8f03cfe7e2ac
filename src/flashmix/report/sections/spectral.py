"""Suite spectral: the study's six benchmarks, crossovers, and the invariants as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis.timings import DIRECTIONS, FUSED, NAIVE, Sweep, comparable
from flashmix.report.sections import sweep as sweep_tables
from flashmix.report.sections.claims import Published
from flashmix.report.tables import Cell, Section, Table

PUBLISHED = (
    *(
        Published(source="spectral study", label="spectral", seq_len=n, times=times)
        for n, times in (
            (128, 1.7),
            (256, 3.1),
            (512, 9.7),
            (1024, 19.8),
            (2048, 222.7),
            (2048, 52),
        )
    ),
    *(
        Published(
            source="spectral study", label="spectral", seq_len=n, times=times, measure="memory"
        )
        for n, times in ((512, 4.8), (1024, 2.8), (2048, 3.3))
    ),
    Published(
        source="spectral study",
        label="spectral",
        seq_len=512,
        times=8.5,
        direction="forward_backward",
    ),
    Published(source="spectral study", label="spectral", seq_len=512, times=2.5, subject="block"),
)
"""The study's own two tables give 222.7x and 52x at N = 2,048."""


def sections(rows: Sequence[Row]) -> list[Section]:
    """The study's six benchmarks, the crossovers, and the invariants as measured numbers."""
    plain = comparable(rows)
    forward, both = (Sweep(plain, direction) for direction in DIRECTIONS)
    found = []
    if forward.cells:
        found += [
            _theory_section(forward),
            sweep_tables.memory_section(forward),
        ]
    if both.cells:
        found += [
            sweep_tables.memory_section(both),
            sweep_tables.time_section(both),
            sweep_tables.speedup_section(both, FUSED),
            sweep_tables.speedup_section(both, NAIVE),
        ]
    found.append(_block_section(rows))
    for sweep in (forward, both):
        if sweep.cells:
            found += [sweep_tables.growth_section(sweep), sweep_tables.crossover_section(sweep)]
    if forward.cells:
        found.append(sweep_tables.parameter_section(forward))
    for row in rows:
        if row["direction"] == "properties" and row["status"] == "ok":
            body = [
                [name.replace("_", " "), Cell(str(value), row)]
                for name, value in row["properties"].items()
            ]
            found.append(
                Section(
                    "Invariants, measured",
                    [f"At [{row['batch']}, {row['seq_len']}, {row['dim']}], float32."],
                    Table(["what", "value"], body),
                )
            )
    return found


def _theory_section(sweep: Sweep) -> Section:
    """Benchmark 1: speed with the ratio of operations counts that the study calls theoretical."""
    body = []
    for n in sweep.seq_lens:
        cells = [sweep.row(label, n) for label in ("spectral", NAIVE, FUSED)]
        if any(row is None for row in cells):
            continue
        body.append(
            [
                f"{n:,}",
                *(tables.time_cell(row) for row in cells if row is not None),
                *(tables.speed_cell(cells[0], base) for base in cells[1:] if cells[0]),
                f"{n / max(1.0, math.log2(n)):.0f}x",
            ]
        )
    columns = [
        "N",
        "spectral (ms)",
        "naive (ms)",
        "fused (ms)",
        "speed-up vs naive",
        "vs fused",
        "n / log2 n",
    ]
    return Section(
        "Speed, forward",
        ["Last column: the ratio of operation counts, often quoted as the speed-up in theory."],
        Table(columns, body),
    )


def _block_section(rows: Sequence[Row]) -> Section:
    blocks = [row for row in rows if row["subject"] == "block" and row["status"] == "ok"]
    body = []
    for row in blocks:
        base = next(
            (r for r in blocks if r["label"] == FUSED and r["direction"] == row["direction"]), None
        )
        body.append(
            [
                row["label"],
                row["direction"].replace("_", " + "),
                tables.time_cell(row),
                tables.speed_cell(row, base),
                tables.params_cell(row),
            ]
        )
    return Section(
        "Whole blocks, with norms and MLP",
        table=Table(["mixer", "direction", "time (ms)", "vs fused", "parameters"], body),
    )

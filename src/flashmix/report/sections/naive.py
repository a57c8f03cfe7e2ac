"""Suite naive: what materialised attention costs over a grid, and what each remedy saves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.report.analysis.timings import NAIVE, Sweep, comparable
from flashmix.report.tables import (
    Cell,
    Finding,
    Section,
    Table,
    interval,
    memory_cell,
    number,
    speed_cell,
)


def sections(rows: Sequence[Row]) -> list[Section]:
    """Forward and backward side by side, memory, the N x N matrix, scaling, remedies."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    found = [_naive_table(rows, NAIVE), _naive_summary(rows), _naive_scaling(rows)]
    if len(labels) > 1:
        found.append(_remedies(rows, labels))
    return found


def _pairs(rows: Sequence[Row], label: str) -> list[tuple[Row | None, Row | None]]:
    """(forward, backward) of each shape."""
    by_shape: dict[tuple[int, int], dict[str, Row]] = {}
    for row in rows:
        if row["label"] == label:
            by_shape.setdefault((row["dim"], row["seq_len"]), {})[row["direction"]] = row
    return [
        (by_direction.get("forward"), by_direction.get("backward"))
        for by_direction in by_shape.values()
    ]


def _mean_std(row: Row | None) -> str:
    if row is None or row["status"] != "ok":
        return "-"
    return Cell(f"{number(row['mean_ms'])} +- {number(row['std_ms'])}", row)


def _naive_table(rows: Sequence[Row], label: str) -> Section:
    body = []
    for pair in _pairs(rows, label):
        case = next(row for row in pair if row is not None)
        matrix = case["batch"] * case["num_heads"] * case["seq_len"] ** 2 * _width(case) / 1e6
        statuses = [row["status"].upper() for row in pair if row is not None]
        body.append(
            [
                f"{case['dim']}",
                f"{case['seq_len']:,}",
                f"{case['batch']}",
                *(_mean_std(row) for row in pair),
                *(memory_cell(row) if row and row["status"] == "ok" else "-" for row in pair),
                number(matrix),
                " / ".join(dict.fromkeys(statuses)),
            ]
        )
    columns = [
        "d_model",
        "seq_len",
        "batch",
        "forward (ms)",
        "backward (ms)",
        "forward memory (MB)",
        "forward + backward memory (MB)",
        "attention matrix (MB)",
        "status",
    ]
    return Section(
        "Naive attention",
        ["Mean +- standard deviation over the timed samples."],
        Table(columns, body),
    )


def _width(row: Row) -> int:
    return {"float64": 8, "float32": 4}.get(row["dtype"], 2)


def _naive_summary(rows: Sequence[Row]) -> Section:
    body = []
    for direction in ("forward", "backward"):
        ok = [
            row
            for row in rows
            if row["label"] == NAIVE and row["direction"] == direction and row["status"] == "ok"
        ]
        if ok:
            ok.sort(key=lambda row: row["mean_ms"])
            mean = statistics.mean(row["mean_ms"] for row in ok)
            ends = [Cell(number(row["mean_ms"]), row) for row in (ok[0], ok[-1])]
            body.append([direction, Cell(number(mean), *ok), *ends])
    columns = ["direction", "average (ms)", "fastest (ms)", "slowest (ms)"]
    return Section("Averages over the grid", table=Table(columns, body))


def _naive_scaling(rows: Sequence[Row]) -> Section:
    body = []
    for dim in sorted({row["dim"] for row in rows}):
        for direction in ("forward", "backward"):
            sweep = Sweep((row for row in rows if row["dim"] == dim), direction)
            lengths = sweep.measured(NAIVE)
            if len(lengths) < 2:
                continue
            first, last = (sweep.cells[NAIVE][n] for n in (lengths[0], lengths[-1]))
            growth = (last["peak_mb"] / first["peak_mb"]) if first["peak_mb"] else 0.0
            body.append(
                [
                    f"{dim}",
                    direction,
                    Cell(interval(sweep.exponent(NAIVE), ""), *sweep.cells[NAIVE].values()),
                    Cell(
                        f"{number(growth)}x from N = {lengths[0]:,} to {lengths[-1]:,}",
                        first,
                        last,
                    ),
                ]
            )
    return Section(
        "Scaling, fitted from the rows",
        ["Exponent of time in N (2 is quadratic), and growth of peak memory over the range."],
        Table(["d_model", "direction", "time exponent", "memory growth"], body),
    )


def _remedies(rows: Sequence[Row], labels: Sequence[str]) -> Section:
    body = []
    for direction in ("forward", "backward"):
        by_case = {
            (row["label"], row["dim"], row["seq_len"]): row
            for row in rows
            if row["direction"] == direction and row["status"] == "ok"
        }
        for (label, dim, seq_len), base in by_case.items():
            if label != NAIVE:
                continue
            for other in labels:
                row = by_case.get((other, dim, seq_len))
                if other != NAIVE and row is not None:
                    body.append(
                        [
                            other,
                            direction,
                            f"{dim}",
                            f"{seq_len:,}",
                            speed_cell(row, base, in_turn=row.get("ranks") is None),
                            Cell(
                                f"{number(base['peak_mb'] / max(row['peak_mb'], 1e-9))}x",
                                row,
                                base,
                            ),
                        ]
                    )
    return Section(
        "Remedies, on the same grid",
        [
            "Relative to naive attention: above 1x is faster, or smaller. Memory of the backward "
            "is that of a whole forward + backward; its time includes recomputing the forward "
            "where that is the remedy. Across ranks, the tokens of a sequence are divided among "
            "several processes that share the threads, or several GPUs; memory is per rank."
        ],
        Table(["remedy", "direction", "d_model", "seq_len", "speed", "memory saved"], body),
    )


def findings(rows: Sequence[Row]) -> list[Finding]:
    """How naive attention grows, where nothing else was measured beside it."""
    found = []
    for direction in ("forward", "backward"):
        sweep = Sweep(comparable(rows), direction)
        exponent = sweep.exponent(NAIVE) if NAIVE in sweep.cells else None
        if exponent:
            text = f"is the exponent of naive attention's time in N, {direction}: "
            text += f"{interval(exponent, '')}; 2 is quadratic."
            used = tuple(sweep.cells[NAIVE].values())
            found.append(Finding(f"{exponent.value:.2f}", text, used))
    return found

"""The sections of the suites that follow published studies, with those studies' columns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from flashmix.bench.case import COPY
from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis import DIRECTIONS, FUSED, NAIVE, Sweep, comparable
from flashmix.report.recommend import recommendation_section
from flashmix.report.sparse import sparse_sections
from flashmix.report.tables import Cell, Section, Table, interval, number


def fourier_sections(rows: Sequence[Row]) -> list[Section]:
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


def naive_sections(rows: Sequence[Row]) -> list[Section]:
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
    return [(one.get("forward"), one.get("backward")) for one in by_shape.values()]


def _mean_std(row: Row | None) -> str:
    if row is None or row["status"] != "ok":
        return "-"
    return Cell(f"{number(row['mean_ms'])} +- {number(row['std_ms'])}", row)


def _naive_table(rows: Sequence[Row], label: str) -> Section:
    body = []
    for pair in _pairs(rows, label):
        one = next(row for row in pair if row is not None)
        matrix = one["batch"] * one["num_heads"] * one["seq_len"] ** 2 * _width(one) / 1e6
        statuses = [row["status"].upper() for row in pair if row is not None]
        body.append(
            [
                f"{one['dim']}",
                f"{one['seq_len']:,}",
                f"{one['batch']}",
                *(_mean_std(row) for row in pair),
                *(
                    tables.memory_cell(row) if row and row["status"] == "ok" else "-"
                    for row in pair
                ),
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
                            tables.speed_cell(row, base),
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
            "Against naive attention: above 1x is faster, or smaller. The backward's memory is "
            "that of a whole forward + backward; its time, where the forward is recomputed, "
            "includes the recomputation. Sequence parallelism is not among them yet."
        ],
        Table(["remedy", "direction", "d_model", "seq_len", "speed", "memory saved"], body),
    )


def spectral_sections(rows: Sequence[Row]) -> list[Section]:
    """The study's six benchmarks, the crossovers, and the invariants as measured numbers."""
    plain = comparable(rows)
    forward, both = (Sweep(plain, direction) for direction in DIRECTIONS)
    found = []
    if forward.cells:
        found += [
            _theory_section(forward),
            tables.memory_section(forward),
        ]
    if both.cells:
        found += [
            tables.memory_section(both),
            tables.time_section(both),
            tables.speedup_section(both, FUSED),
            tables.speedup_section(both, NAIVE),
        ]
    found.append(_block_section(rows))
    for sweep in (forward, both):
        if sweep.cells:
            found += [tables.growth_section(sweep), tables.crossover_section(sweep)]
    if forward.cells:
        found.append(tables.parameter_section(forward))
    for row in rows:
        if row["direction"] == "facts" and row["status"] == "ok":
            body = [
                [name.replace("_", " "), Cell(str(value), row)]
                for name, value in row["facts"].items()
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
        ["The last column is the ratio of operation counts that is often quoted as theory."],
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


def swap_sections(rows: Sequence[Row]) -> list[Section]:
    """Inference and training step of the classifier, relative to both vanilla models."""
    found = []
    for direction, name in (("forward", "Inference"), ("train_step", "Training step")):
        sweep = Sweep(rows, direction)
        for n in sweep.seq_lens:
            body = []
            for label in sweep.labels:
                row = sweep.row(label, n)
                if row is None or row["status"] != "ok":
                    body.append([label, tables.status_cell(row), "-", "-", "-", "-"])
                    continue
                body.append(
                    [
                        label,
                        tables.time_cell(row),
                        tables.speed_cell(row, sweep.row(NAIVE, n)),
                        tables.speed_cell(row, sweep.row(FUSED, n)),
                        tables.memory_cell(row),
                        tables.params_cell(row),
                    ]
                )
            if body:
                columns = ["mixer", "time (ms)", "vs eager", "vs fused", "peak MB", "parameters"]
                found.append(Section(f"{name}, {n:,} tokens", table=Table(columns, body)))
    return found


def kernels_sections(rows: Sequence[Row]) -> list[Section]:
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

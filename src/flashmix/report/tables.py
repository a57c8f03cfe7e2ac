"""A report as data: sections of text and tables, the same for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.report.analysis import (
    DIRECTIONS,
    FUSED,
    NAIVE,
    Crossover,
    Sweep,
    Training,
    time_ratio,
)


class Cell(str):
    """A cell's text that knows the rows it was computed from."""

    rows: tuple[Row, ...]

    def __new__(cls, text: str, *rows: Row) -> Cell:
        """``text``, computed from ``rows``."""
        cell = super().__new__(cls, text)
        cell.rows = rows
        return cell


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; every column but the first is aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading, some sentences, a table where there is one."""

    title: str
    text: Sequence[str] = field(default=())
    table: Table | None = None


def number(value: float) -> str:
    """Three significant digits, with thousands separated."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def interval(value: Interval | None, unit: str = "x") -> str:
    """An estimate with its interval, or a dash."""
    if value is None:
        return "-"
    return f"{number(value.value)}{unit} ({number(value.low)} to {number(value.high)})"


def crossover(value: Crossover) -> str:
    """A crossover in words."""
    if value.kind == "from" and value.at is not None:
        at, low, high = (round(n) for n in (value.at.value, value.at.low, value.at.high))
        return f"N = {at:,} ({low:,} to {high:,})"
    return {
        "always": "at every N measured",
        "never": "at no N measured",
        "unclear": "unclear: intervals overlap",
    }[value.kind]


def status_cell(row: Row | None) -> str:
    """What stands in the cell of a case that was not measured."""
    return "-" if row is None else Cell(str(row["status"]).upper(), row)


def _by_length(sweep: Sweep, cell: str, first: str) -> Table:
    rows = []
    for label in sweep.cells if cell == "time" else sweep.labels:
        line = [label]
        for n in sweep.seq_lens:
            row = sweep.row(label, n)
            if row is None or row["status"] != "ok":
                line.append(status_cell(row))
            else:
                line.append(time_cell(row) if cell == "time" else memory_cell(row))
        rows.append(line)
    return Table([first, *(f"N = {n:,}" for n in sweep.seq_lens)], rows)


def time_cell(row: Row) -> str:
    """Median with quartiles, marked where noisy, or the status of what was not measured."""
    if row["status"] != "ok":
        return status_cell(row)
    spread = f" ({number(row['q1_ms'])} to {number(row['q3_ms'])})"
    return Cell(number(row["median_ms"]) + spread + (" ~" if row["noisy"] else ""), row)


def memory_cell(row: Row) -> str:
    """Peak memory in MB."""
    return Cell(number(row["peak_mb"]), row)


def params_cell(row: Row) -> str:
    """Number of parameters."""
    return Cell(f"{row['params']:,}", row)


def speed_cell(row: Row, baseline: Row | None, *, in_turn: bool = True) -> str:
    """How many times faster than ``baseline``, with the interval; "1x" for itself.

    ``in_turn``: the two were timed interleaved.
    """
    if baseline is None or row["status"] != "ok" or baseline["status"] != "ok":
        return "-"
    if row is baseline:
        return "1x"
    return Cell(interval(time_ratio(baseline, row, in_turn=in_turn)), row, baseline)


def time_section(sweep: Sweep) -> Section:
    """Median times with quartiles, the copy floor among them."""
    return Section(
        f"Time, {DIRECTIONS[sweep.direction]} (ms)",
        [
            "Median and quartiles. `copy` reads and writes [B, N, D] once"
            + (", twice for forward + backward" if sweep.direction != "forward" else "")
            + ": the floor of any mixer. `~` marks a noisy row: quartiles over 25 % of the median "
            "apart."
        ],
        _by_length(sweep, "time", "mixer"),
    )


def issue_section(sweep: Sweep) -> Section:
    """On a GPU: Python's time to issue a call, and from which N the GPU takes longer than that."""
    body = []
    for label in sweep.labels:
        rows = [row for n in sweep.measured(label) if "host_ms" in (row := sweep.cells[label][n])]
        if not rows:
            continue
        paced = [row["seq_len"] for row in rows if row["median_ms"] < row["host_ms"]]
        longer = [row["seq_len"] for row in rows if row["seq_len"] > max(paced, default=0)]
        start = f"N = {longer[0]:,}" if longer else "not in range"
        issue = Cell(number(median(row["host_ms"] for row in rows)), *rows)
        body.append([label, issue, Cell(start, *rows)])
    return Section(
        f"Python's time to issue a call, {DIRECTIONS[sweep.direction]}",
        [
            "Times elsewhere are the GPU's alone. Calls that follow each other cost the larger of "
            "the two, so below the length named the mixer is bound by Python, unless captured in "
            "a CUDA graph."
        ],
        Table(["mixer", "issue (ms), median over N", "GPU takes longer from"], body),
    )


def memory_section(sweep: Sweep) -> Section:
    """Peak memory, with the N x N matrix beside it."""
    table = _by_length(sweep, "memory", "mixer")
    line = ["one N x N matrix per head"]
    for n in sweep.seq_lens:
        row = next(cells[n] for cells in sweep.cells.values() if n in cells)
        size = 8 if row["dtype"] == "float64" else 4 if row["dtype"] == "float32" else 2
        line.append(Cell(number(row["batch"] * row["num_heads"] * n * n * size / 1e6), row))
    return Section(
        f"Peak memory, {DIRECTIONS[sweep.direction]} (MB)",
        ["Tensors allocated beyond inputs and weights; last row: what the attention matrix takes."],
        Table(table.columns, [*table.rows, line]),
    )


def speedup_section(sweep: Sweep, baseline: str) -> Section:
    """How many times faster than a baseline, with intervals."""
    rows = [
        [label, *(_speed(sweep, label, baseline, n) for n in sweep.seq_lens)]
        for label in sweep.labels
        if label != baseline
    ]
    return Section(
        f"Speed against {baseline}, {DIRECTIONS[sweep.direction]}",
        ["Above 1x is faster than the baseline. 95 % bootstrap intervals of the ratio of medians."],
        Table(["mixer", *(f"N = {n:,}" for n in sweep.seq_lens)], rows),
    )


def _speed(sweep: Sweep, label: str, baseline: str, seq_len: int) -> str:
    ours = sweep.row(label, seq_len)
    return "-" if ours is None else speed_cell(ours, sweep.row(baseline, seq_len))


def _all(sweep: Sweep, *labels: str) -> list[Row]:
    """Every row of some labels, by length."""
    return [row for label in labels for row in sweep.cells.get(label, {}).values()]


def crossover_section(sweep: Sweep) -> Section:
    """From which N each mixer is faster, and smaller, than each baseline."""
    rows = [
        [
            label,
            Cell(crossover(sweep.crossover(label, FUSED)), *_all(sweep, label, FUSED)),
            Cell(crossover(sweep.crossover(label, NAIVE)), *_all(sweep, label, NAIVE)),
            Cell(crossover(sweep.memory_crossover(label, FUSED)), *_all(sweep, label, FUSED)),
        ]
        for label in sweep.labels
        if label not in (NAIVE, FUSED)
    ]
    return Section(
        f"Crossover, {DIRECTIONS[sweep.direction]}",
        ["From which N a mixer wins and stays ahead, interpolated on log-log."],
        Table(["mixer", "faster than fused", "faster than naive", "less memory than fused"], rows),
    )


def growth_section(sweep: Sweep) -> Section:
    """Growth per doubling of N, and the fitted exponent."""
    doublings = [n for n in sweep.seq_lens if n // 2 in sweep.seq_lens]
    rows = []
    for label in sweep.labels:
        growth, by_length = dict(sweep.growth(label)), sweep.cells[label]
        cells = [
            Cell(f"{number(growth[n].value)}x", by_length[n // 2], by_length[n])
            if n in growth
            else "-"
            for n in doublings
        ]
        exponent = Cell(interval(sweep.exponent(label), ""), *by_length.values())
        rows.append([label, *cells, exponent])
    return Section(
        f"Growth per doubling of N, {DIRECTIONS[sweep.direction]}",
        ["2x is linear, 4x is quadratic. Exponent: slope of log time against log N."],
        Table(["mixer", *(f"to {n:,}" for n in doublings), "exponent"], rows),
    )


def parameter_section(sweep: Sweep) -> Section:
    """Parameters of each mixer at the run's width."""
    rows = []
    for label in sweep.labels:
        if measured := sweep.measured(label):
            rows.append([label, params_cell(sweep.cells[label][measured[0]])])
    dim = next(iter(next(iter(sweep.cells.values())).values()))["dim"]
    return Section("Parameters", [f"At width {dim}."], Table(["mixer", "parameters"], rows))


def training_section(found: Sequence[Training]) -> Section:
    """Accuracy on held-out digits beside the steps that fitted in the time."""
    rows = [
        [
            one.mixer,
            Cell(" / ".join(f"{100 * a:.1f} %" for a in one.accuracies) or "-", *one.rows),
            Cell(" / ".join(f"{steps:,}" for steps in one.steps) or "-", *one.rows),
            Cell(f"{one.params:,}" if one.accuracies else "-", *one.rows),
            ", ".join(one.failed) or "ok",
        ]
        for one in found
    ]
    seconds = min((one.seconds for one in found if one.accuracies), default=0.0)
    return Section(
        "Accuracy on handwritten digits",
        [
            f"A two-layer encoder of width 64 on 64-token images, {seconds:.0f} s of training for "
            "each mixer and seed (on the CPU: one thread, its processor time), tested on 360 "
            "held-out images. One figure for each seed. A fixed time, so a cheaper step means more "
            "steps."
        ],
        Table(["mixer", "held-out accuracy", "steps", "parameters", "status"], rows),
    )

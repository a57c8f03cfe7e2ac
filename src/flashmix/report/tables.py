"""A report as data: sections of text and tables, the same for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.report.analysis.timings import DIRECTIONS, Crossover, time_ratio


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

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show: a table without rows, or neither table nor text."""
        return not (self.table.rows if self.table else self.text)


@dataclass(frozen=True)
class Finding:
    """A figure that stands out, what it says in a sentence, and the rows it comes from."""

    figure: str
    text: str
    rows: tuple[Row, ...] = ()


def direction_name(direction: str) -> str:
    """A direction in words."""
    return DIRECTIONS.get(direction, direction.replace("_", " "))


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


def points(value: Interval | None, unit: str = " %") -> str:
    """A share as per cent, with its interval where there is one."""
    if value is None:
        return "-"
    if math.isnan(value.low):
        return f"{100 * value.value:.2f}{unit}"
    return f"{100 * value.value:.2f}{unit} ({100 * value.low:.2f} to {100 * value.high:.2f})"

"""From timed rows to what a reader wants to know: ratios, growth, crossovers.

Everything here is a function of the rows of one run; nothing is measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flashmix.bench.baselines import BASELINES
from flashmix.bench.case import COPY
from flashmix.bench.stats import Interval, ratio, resampled_medians
from flashmix.bench.store import Row

NAIVE = "attention (naive)"


FUSED = "attention (fused)"


DIRECTIONS = {"forward": "forward", "forward_backward": "forward + backward"}


def time_ratio(numerator: Row, denominator: Row, *, in_turn: bool = True) -> Interval:
    """Ratio of two rows' median times, its interval with the drift that their runs saw.

    ``in_turn``: the two were timed interleaved, so that only the drift of ratios counts.
    """
    if in_turn:
        drift = numerator.get("drift", {}).get("ratio", 0.0)
    else:
        drift = math.hypot(time_drift(numerator), time_drift(denominator))
    return ratio(numerator["samples_ms"], denominator["samples_ms"], drift)


def time_drift(row: Row) -> float:
    """The drift of a row's median time; 0 where its run measured nothing twice."""
    return float(row.get("drift", {}).get("time", 0.0))


def log_medians(row: Row, seed: int) -> np.ndarray:
    """Random draws of the log of a row's median time, drift included."""
    return np.log(resampled_medians(row["samples_ms"], seed, time_drift(row)))


def is_full(row: Row) -> bool:
    """Whether every sequence of the batch is as long as the longest; old rows do not say."""
    return row.get("lengths", "full") == "full"


def comparable(rows: Iterable[Row], subject: str = "mixer", *, padded: bool = False) -> list[Row]:
    """Rows of one subject in plain precision; of several widths, those of the largest.

    Full batches, or ``padded`` ones: the two are not compared with each other.
    """
    found = [
        row
        for row in rows
        if row.get("subject", "mixer") == subject
        and row.get("autocast") is None
        and row["direction"] != "train"
        and row.get("suite") != "parallel"
        and is_full(row) is not padded
    ]
    widest = max((row["dim"] for row in found), default=0)
    return [row for row in found if row["dim"] == widest]


@dataclass(frozen=True)
class Crossover:
    """From which N a mixer stays faster (or smaller) than another.

    ``kind``: "from" a length inside the range; "always" or "never" in the range; "unclear" where
    the intervals do not decide. ``at`` is interpolated on log-log, with its interval.
    """

    kind: Literal["from", "always", "never", "unclear"]
    at: Interval | None = None


class Sweep:
    """The timed rows of one direction, by label and N."""

    def __init__(self, rows: Iterable[Row], direction: str) -> None:
        self.direction = direction
        self.cells: dict[str, dict[int, Row]] = {}
        for row in rows:
            if row["direction"] == direction:
                self.cells.setdefault(row["label"], {})[row["seq_len"]] = row

    @property
    def labels(self) -> list[str]:
        """Everything measured but the copy, in the order of the rows."""
        return [label for label in self.cells if label != COPY]

    @property
    def seq_lens(self) -> list[int]:
        """The lengths, ascending."""
        return sorted({n for cells in self.cells.values() for n in cells})

    def row(self, label: str, seq_len: int) -> Row | None:
        """The row, or None where the case was not in the run."""
        return self.cells.get(label, {}).get(seq_len)

    def ok(self, label: str, seq_len: int) -> Row | None:
        """The row where it was measured, or None."""
        row = self.row(label, seq_len)
        return row if row is not None and row["status"] == "ok" else None

    def measured(self, label: str) -> list[int]:
        """The lengths at which ``label`` was measured."""
        return [n for n in self.seq_lens if self.ok(label, n)]

    def speedup(self, label: str, baseline: str, seq_len: int) -> Interval | None:
        """How many times faster than ``baseline``; below one is slower."""
        ours, theirs = self.ok(label, seq_len), self.ok(baseline, seq_len)
        if ours is None or theirs is None:
            return None
        return time_ratio(theirs, ours)

    def growth(self, label: str) -> list[tuple[int, Interval]]:
        """(N, time at N over time at N / 2) for each doubling measured."""
        found = []
        for n in self.measured(label):
            half, whole = self.ok(label, n // 2), self.ok(label, n)
            if n % 2 == 0 and half is not None and whole is not None:
                found.append((n, time_ratio(whole, half, in_turn=False)))
        return found

    def exponent(self, label: str) -> Interval | None:
        """The slope of log time against log N over all lengths, with its interval."""
        lengths = self.measured(label)
        if len(lengths) < 3:
            return None
        x = np.log(lengths)
        rows = [self.cells[label][n] for n in lengths]
        medians = np.log([row["median_ms"] for row in rows])
        draws = np.array([log_medians(row, i) for i, row in enumerate(rows)])
        centred = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        low, high = np.percentile(centred @ draws, [2.5, 97.5])
        return Interval(float(centred @ medians), float(low), float(high))

    def crossover(self, label: str, baseline: str) -> Crossover:
        """From which N ``label`` is faster than ``baseline`` and stays so."""
        ratios = [(n, r) for n in self.seq_lens if (r := self.speedup(label, baseline, n))]
        return find_crossover(ratios)

    def memory_crossover(self, label: str, baseline: str) -> Crossover:
        """From which N ``label`` peaks lower than ``baseline`` and stays so."""
        ratios = []
        for n in self.seq_lens:
            ours, theirs = self.ok(label, n), self.ok(baseline, n)
            if ours and theirs and min(ours["peak_mb"], theirs["peak_mb"]) > 0:
                value = theirs["peak_mb"] / ours["peak_mb"]
                ratios.append((n, Interval(value, value, value)))
        return find_crossover(ratios)


def find_crossover(ratios: Sequence[tuple[int, Interval]]) -> Crossover:
    """The crossover of (N, ratio) pairs, a ratio above one being a win."""
    if not ratios:
        return Crossover("unclear")
    wins = [interval.low > 1 for _, interval in ratios]
    losses = [interval.high < 1 for _, interval in ratios]
    if all(wins):
        return Crossover("always")
    if not wins[-1]:
        return Crossover("never" if not any(wins) and losses[-1] else "unclear")
    first = len(wins) - len(list(itertools.takewhile(bool, reversed(wins))))
    before, after = ratios[first - 1], ratios[first]
    if not losses[first - 1]:
        # Between a tie and a win there is no crossing to interpolate, only a bracket.
        return Crossover("from", Interval(after[0], before[0], after[0]))
    value = _crossing(before, after, "value")
    return Crossover(
        "from", Interval(value, _crossing(before, after, "high"), _crossing(before, after, "low"))
    )


def _crossing(before: tuple[int, Interval], after: tuple[int, Interval], bound: str) -> float:
    """Where a line through two (log N, log ratio) points meets ratio one."""
    (n0, r0), (n1, r1) = before, after
    y0, y1 = math.log(getattr(r0, bound)), math.log(getattr(r1, bound))
    return math.exp(math.log(n0) - y0 * (math.log(n1) - math.log(n0)) / (y1 - y0))


def kernel_ratios(
    rows: Iterable[Row], *, padded: bool = False
) -> dict[tuple[str, str, str], dict[str, list[float]]]:
    """How many times faster each implementation is than each baseline, shape by shape.

    By (op, direction, implementation), then by the baseline; of full batches, or ``padded`` ones.
    """
    groups: dict[tuple[str, str], dict[tuple[object, ...], dict[str, float]]] = {}
    for row in rows:
        timed = row["direction"] != "properties" and row["status"] == "ok"
        if row.get("subject") == "op" and timed and is_full(row) is not padded:
            shape = tuple(row[k] for k in ("batch", "seq_len", "dim", "window", "topk", "modes"))
            cells = groups.setdefault((row["op"], row["direction"]), {}).setdefault(shape, {})
            cells[row["label"]] = row["median_ms"]
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for (op, direction), shapes in groups.items():
        labels = list(dict.fromkeys(label for cells in shapes.values() for label in cells))
        baselines = [label for label in labels if label in BASELINES[op]]
        for ours in labels:
            if ours in (COPY, *baselines):
                continue
            for theirs in baselines:
                ratios = [c[theirs] / c[ours] for c in shapes.values() if {ours, theirs} <= set(c)]
                if ratios:
                    found.setdefault((op, direction, ours), {})[theirs] = ratios
    return found

"""Finished trainings by pattern: their means over seeds, and how far they part from attention."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flashmix.bench.stats import Interval, mean_interval
from flashmix.bench.store import Row

BASE = "attention"


@dataclass(frozen=True)
class Model:
    """The finished rows of one pattern, a row for each seed."""

    mixers: str
    rows: tuple[Row, ...]
    asked: int
    """Seeds that the run has rows of, of this pattern or another."""

    @property
    def seeds(self) -> str:
        """How many seeds finished, and of how many where some did not."""
        return finished_of(len(self.rows), self.asked)

    def values(self, name: str) -> list[float]:
        """A field of all seeds that have it."""
        return [row[name] for row in self.rows if row.get(name) is not None]

    def mean(self, name: str) -> Interval | None:
        """Mean over the seeds."""
        return mean_interval(values) if (values := self.values(name)) else None


def finished_of(done: int, asked: int) -> str:
    """``done`` as a count, "2 of 3" where more were asked for."""
    return str(done) if done == asked else f"{done} of {asked}"


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each pattern and seed: a training that failed may have been repeated."""
    return list({(row["mixers"], row["seed"]): row for row in rows}.values())


def in_order(run: dict[str, Any], rows: Sequence[Row]) -> list[Row]:
    """The rows as the run lists its patterns and seeds, not as they ended."""
    order = {mixers: place for place, mixers in enumerate(run["experiment"]["mixers"])}
    return sorted(rows, key=lambda row: (order[row["mixers"]], row["seed"]))


def models(rows: Sequence[Row]) -> list[Model]:
    """The patterns of a run with their finished rows, in order."""
    groups: dict[str, list[Row]] = {}
    for row in latest(rows):
        if row["status"] == "ok":
            groups.setdefault(row["mixers"], []).append(row)
    asked = len({row["seed"] for row in rows})
    return [Model(mixers, tuple(group), asked) for mixers, group in groups.items()]


def points(value: Interval | None, unit: str = " %") -> str:
    """A share as per cent, with its interval where there is one."""
    if value is None:
        return "-"
    if math.isnan(value.low):
        return f"{100 * value.value:.2f}{unit}"
    return f"{100 * value.value:.2f}{unit} ({100 * value.low:.2f} to {100 * value.high:.2f})"


def paired(one: Model, base: Model) -> Interval | None:
    """Difference in test accuracy, seed by seed."""
    theirs = {row["seed"]: row["test_accuracy"] for row in base.rows}
    differences = [
        row["test_accuracy"] - theirs[row["seed"]] for row in one.rows if row["seed"] in theirs
    ]
    return mean_interval(differences) if differences else None


def against_base(rows: Sequence[Row]) -> list[tuple[Model, Model, Interval]]:
    """Each pattern, attention, and the difference in test accuracy between them."""
    found = models(rows)
    base = next((one for one in found if one.mixers == BASE), None)
    if base is None or not base.values("test_accuracy"):
        return []
    others = [one for one in found if one is not base]
    return [(one, base, gap) for one in others if (gap := paired(one, base))]


def kept(one: Model, base: Model) -> str:
    """The share of the base's test accuracy that a pattern keeps."""
    whole = mean(base, "test_accuracy")
    return f"{100 * mean(one, 'test_accuracy') / whole:.1f} %" if whole else "-"


def mean(one: Model, name: str) -> float:
    """Mean of a field over the seeds."""
    return statistics.fmean(one.values(name))

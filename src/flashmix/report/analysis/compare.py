"""Two runs, row by row: which cases became faster or slower, as far as the samples show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from flashmix.bench.case import BenchmarkCase
from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.errors import ArgumentError
from flashmix.report.analysis.timings import time_ratio
from flashmix.report.analysis.training import is_finetuning

SMALLEST_CHANGE = 0.02
"""Changes below this are not reported, however narrow their interval: machines drift by as much."""


@dataclass(frozen=True)
class Change:
    """A case of two runs; ``time`` is the second's over the first's, above one is slower."""

    before: Row
    after: Row
    time: Interval

    @property
    def significant(self) -> bool:
        """Whether the interval lies clear of no change."""
        return self.time.low > 1 + SMALLEST_CHANGE or self.time.high < 1 - SMALLEST_CHANGE


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common, and what only one of them has."""

    changes: tuple[Change, ...]
    only_before: tuple[Row, ...]
    only_after: tuple[Row, ...]
    broken: tuple[tuple[Row, Row], ...]
    """Cases that finished in one of the runs alone: (before, after)."""

    @property
    def significant(self) -> list[Change]:
        """The changes worth a word, the largest slowdown first."""
        return sorted((c for c in self.changes if c.significant), key=lambda c: -c.time.value)

    def slower_than(self, share: float) -> list[Change]:
        """Significant slowdowns by more than ``share`` (0.1 is 10 %)."""
        return [change for change in self.significant if change.time.value > 1 + share]


def _key(row: Row) -> str:
    """What makes two rows the same case; the suite that asked for it does not matter."""
    return json.dumps({**BenchmarkCase.from_dict(row).as_dict(), "suite": None}, sort_keys=True)


def compare(before: Iterable[Row], after: Iterable[Row]) -> Comparison:
    """Compare the timed rows of two runs."""
    before, after = list(before), list(after)
    if any(is_finetuning(row) for row in (*before, *after)):
        raise ArgumentError(
            "a run holds trainings, which are not compared case by case; flashmix report RUN_A "
            "RUN_B shows them side by side"
        )
    first = {_key(row): row for row in before if row["direction"] not in ("train", "properties")}
    second = {_key(row): row for row in after if row["direction"] not in ("train", "properties")}
    both = [(first[key], second[key]) for key in first if key in second]
    return Comparison(
        changes=tuple(
            Change(a, b, time_ratio(b, a, in_turn=False))
            for a, b in both
            if a["status"] == b["status"] == "ok"
        ),
        only_before=tuple(row for key, row in first.items() if key not in second),
        only_after=tuple(row for key, row in second.items() if key not in first),
        broken=tuple(
            (a, b)
            for a, b in both
            if a["status"] != b["status"] and "ok" in (a["status"], b["status"])
        ),
    )

"""Several ranks against one: the rows of suite ``parallel`` in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.report.analysis.timings import time_ratio

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Pair:
    """A mixer over several ranks, and on one of them; both measured.

    For weak scaling the one rank's N is that of each of the several.
    """

    single: Row
    several: Row

    @property
    def rows(self) -> tuple[Row, Row]:
        """Both rows."""
        return self.single, self.several

    @property
    def direction(self) -> str:
        """What was measured."""
        return str(self.single["direction"])

    @property
    def name(self) -> str:
        """Mixer, ranks and N in words."""
        return f"{self.several['label']} at N = {self.several['seq_len']:,}"

    @property
    def speedup(self) -> Interval:
        """How many times as fast as one rank; weak scaling: one rank's time over theirs."""
        return time_ratio(self.single, self.several)

    @property
    def memory(self) -> float:
        """Most memory of any rank over that of one alone."""
        return (
            float(self.several["peak_mb"] / self.single["peak_mb"])
            if self.single["peak_mb"]
            else 1.0
        )


def _ok(row: Row) -> bool:
    return row.get("suite") == "parallel" and row["status"] == "ok" and row["ranks"] is not None


def _alone(rows: Iterable[Row]) -> dict[Key, Row]:
    return {
        (row["mixer"], row["direction"], row["seq_len"]): row
        for row in rows
        if _ok(row) and row["ranks"] == 1
    }


def called(rows: Iterable[Row], *, graph: bool = False) -> list[Row]:
    """The rows of plain calls, or those of CUDA graphs, which runs of old do not know."""
    return [row for row in rows if row.get("graph", False) == graph]


def pairs(rows: Sequence[Row], *, weak: bool = False, graph: bool = False) -> list[Pair]:
    """Every case across ranks of which one rank's was measured too; of CUDA graphs where asked."""
    rows = called(rows, graph=graph)
    alone, found = _alone(rows), []
    for row in rows:
        if _ok(row) and row["ranks"] > 1 and row["weak"] == weak:
            seq_len = row["seq_len"] // row["ranks"] if weak else row["seq_len"]
            single = alone.get((row["mixer"], row["direction"], seq_len))
            if single is not None:
                found.append(Pair(single, row))
    return found

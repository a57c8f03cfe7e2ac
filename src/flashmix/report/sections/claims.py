"""Claims as data, checked against rows; a claim that the rows do not support is printed as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.report.analysis.timings import (
    FUSED,
    NAIVE,
    is_full,
    time_ratio,
)
from flashmix.report.analysis.training import is_finetuning
from flashmix.report.tables import Cell, Section, Table, interval

Verdict = Literal["supported", "not supported", "not tested"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published figure: ``label`` needs ``times`` less time or memory than attention.

    Each claim is checked against two baselines: the naive attention that the studies measured, and
    the fused attention that people run.
    """

    source: str
    label: str
    seq_len: int
    times: float
    measure: Literal["time", "memory"] = "time"
    direction: str = "forward"
    subject: str = "mixer"
    device: str | None = None

    @property
    def sentence(self) -> str:
        """The claim in words."""
        what = "faster than" if self.measure == "time" else "smaller in memory than"
        where = f" on {self.device}" if self.device else ""
        name = self.label if self.subject == "mixer" else f"{self.label} {self.subject}"
        direction = self.direction.replace("_", " ").replace(
            "forward backward", "forward + backward"
        )
        times = "" if self.times == 1 else f"{self.times:g}x "
        return f"{name} is {times}{what} attention at N = {self.seq_len:,}{where} ({direction})"

    def check(self, rows: Sequence[Row], baseline: str) -> tuple[Verdict, str]:
        """The verdict against ``baseline``, and what was measured here."""
        part = [
            row
            for row in rows
            if row.get("subject", "mixer") == self.subject
            and row.get("autocast") is None
            and is_full(row)
            and row["direction"] == self.direction
            and row["seq_len"] == self.seq_len
            and row["status"] == "ok"
            and self.device in (None, row["device"])
        ]
        found = {row["label"].partition("(")[0]: row for row in reversed(part)}
        found |= {row["label"]: row for row in part}
        if self.label not in found or baseline not in found:
            return "not tested", "not in this run"
        ours, theirs = found[self.label], found[baseline]
        if self.measure == "memory" and not ours["peak_mb"]:
            return "not tested", "no memory was recorded"
        if self.measure == "memory":
            value = theirs["peak_mb"] / ours["peak_mb"]
            measured = Interval(value, value, value)
        else:
            measured = time_ratio(theirs, ours)
        verdict: Verdict = "not supported"
        if measured.high >= self.times and measured.low > 1:
            verdict = "supported"
        return verdict, Cell(f"{interval(measured)} against {baseline}", ours, theirs)


Checked = tuple[Published, Verdict, str]


def check(rows: Sequence[Row], claims: Sequence[Published]) -> list[Checked]:
    """Each published claim against each baseline: (claim, verdict, measured here)."""
    cases = [row for row in rows if not is_finetuning(row)]
    return [
        (claim, *claim.check(cases, baseline)) for claim in claims for baseline in (NAIVE, FUSED)
    ]


def section(rows: Sequence[Row], claims: Sequence[Published]) -> Section:
    """The claims that the rows can test, with the verdict on each."""
    checked = check(rows, claims)
    body = [
        [claim.sentence, claim.source, verdict, measured]
        for claim, verdict, measured in checked
        if verdict != "not tested"
    ]
    if not body:
        return Section("")
    tested = {row[0] for row in body}
    untested = [c.sentence for c, *_ in checked if c.sentence not in tested]
    return Section(
        "Published claims, checked here",
        [
            "The published figures were measured on other machines, against a naive attention. A "
            "claim is supported where this run's interval lies above 1x and reaches the figure.",
            f"Not tested by this run: {'; '.join(dict.fromkeys(untested))}.",
        ],
        Table(["claim", "source", "verdict", "measured here"], body),
    )

"""Claims as data, checked against rows; one that the rows do not bear out is printed as such."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from flashmix.bench.store import Row
from flashmix.report.analysis import DIRECTIONS, FUSED, NAIVE, Sweep, trainings
from flashmix.report.tables import crossover, interval

Verdict = Literal["supported", "not supported", "not tested"]


@dataclass(frozen=True, kw_only=True)
class SpeedClaim:
    """Somebody's claim that ``label`` is ``times`` faster than attention at ``seq_len``."""

    source: str
    label: str
    seq_len: int
    times: float
    direction: str = "forward"

    @property
    def sentence(self) -> str:
        """The claim in words."""
        return (
            f"{self.label} is {self.times:g}x faster than attention at N = {self.seq_len:,} "
            f"({DIRECTIONS[self.direction]})"
        )

    def check(self, rows: Sequence[Row], baseline: str) -> tuple[Verdict, str]:
        """The verdict against ``baseline``, and what was measured here."""
        sweep = Sweep(rows, self.direction)
        measured = sweep.speedup(self.label, baseline, self.seq_len)
        if measured is None:
            return "not tested", "not in this run"
        verdict: Verdict = "supported" if measured.high >= self.times else "not supported"
        return verdict, f"{interval(measured)} against {baseline}"


PUBLISHED = (
    SpeedClaim(source="spectral study", label="spectral", seq_len=128, times=1.7),
    SpeedClaim(source="spectral study", label="spectral", seq_len=512, times=9.7),
    SpeedClaim(source="spectral study", label="spectral", seq_len=1024, times=19.8),
    SpeedClaim(source="spectral study", label="spectral", seq_len=2048, times=222.7),
    SpeedClaim(
        source="spectral study",
        label="spectral",
        seq_len=512,
        times=8.5,
        direction="forward_backward",
    ),
    SpeedClaim(source="efficient-attention study", label="topk", seq_len=1024, times=1.0),
    SpeedClaim(source="efficient-attention study", label="local", seq_len=1024, times=1.0),
)
"""Figures of published studies, measured there against a naive attention on other machines."""


def statements(rows: Iterable[Row]) -> list[str]:
    """What the run does and does not support, each sentence from its rows."""
    rows = list(rows)
    found = []
    for direction, name in DIRECTIONS.items():
        sweep = Sweep(rows, direction)
        if FUSED not in sweep.cells:
            continue
        span = f"N = {sweep.seq_lens[0]:,} to {sweep.seq_lens[-1]:,}"
        for label in sweep.labels:
            if label not in (NAIVE, FUSED):
                found.append(_against_fused(sweep, label, name, span))
    return [*found, *_accuracy(rows)]


def _against_fused(sweep: Sweep, label: str, direction: str, span: str) -> str:
    crossing = sweep.crossover(label, FUSED)
    if crossing.kind == "always":
        return f"{label} is faster than fused attention at every length, {span} ({direction})."
    if crossing.kind == "never":
        return (
            f"{label} is not faster than fused attention at any length, {span} ({direction}): "
            "not supported."
        )
    if crossing.kind == "from":
        return (
            f"{label} is faster than fused attention from {crossover(crossing)}; not below "
            f"({direction})."
        )
    return (
        f"Whether {label} is faster than fused attention in {span} is not decided by this run "
        f"({direction}): the intervals overlap or the order changes."
    )


def _accuracy(rows: Sequence[Row]) -> list[str]:
    found = [one for one in trainings(rows) if one.accuracies]
    attention = next((one for one in found if one.mixer == "attention"), None)
    if attention is None or len(found) < 2:
        return []
    better = [o.mixer for o in found if min(o.accuracies) > max(attention.accuracies)]
    worse = [o.mixer for o in found if max(o.accuracies) < min(attention.accuracies)]
    same = [o.mixer for o in found if o.mixer not in (*better, *worse, "attention")]
    parts = [
        f"{word} attention with every seed: {', '.join(names)}"
        for word, names in (("above", better), ("below", worse), ("not parted from", same))
        if names
    ]
    seeds = len(attention.accuracies)
    return [
        f"Accuracy on digits at equal training time, {seeds} seeds: {'; '.join(parts)}. "
        "One small task says nothing about language."
    ]


def published_verdicts(rows: Sequence[Row]) -> list[tuple[SpeedClaim, str, Verdict, str]]:
    """Each published claim against each baseline: (claim, baseline, verdict, measured here)."""
    return [
        (claim, baseline, *claim.check(rows, baseline))
        for claim in PUBLISHED
        for baseline in (NAIVE, FUSED)
    ]

"""Claims as data, checked against rows; one that the rows do not bear out is printed as such."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.report import ranks, training
from flashmix.report.analysis import (
    DIRECTIONS,
    FUSED,
    NAIVE,
    Sweep,
    comparable,
    kernel_ratios,
    time_ratio,
    trainings,
)
from flashmix.report.finetuning import is_finetuning
from flashmix.report.tables import Cell, crossover, interval, number

Verdict = Literal["supported", "not supported", "not tested"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published figure: ``label`` needs ``times`` less time or memory than attention.

    ``attention`` stands for both baselines: each claim is checked against the naive attention that
    the studies measured, and against the fused one that people run.
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
            return "not tested", "no memory was seen"
        if self.measure == "memory":
            value = theirs["peak_mb"] / ours["peak_mb"]
            measured = Interval(value, value, value)
        else:
            measured = time_ratio(theirs, ours)
        verdict: Verdict = "not supported"
        if measured.high >= self.times and measured.low > 1:
            verdict = "supported"
        return verdict, Cell(f"{interval(measured)} against {baseline}", ours, theirs)


def _spectral(seq_len: int, times: float, **rest: Any) -> Published:
    return Published(
        source="spectral study", label="spectral", seq_len=seq_len, times=times, **rest
    )


def _swap(direction: str, device: str, saved: float) -> Published:
    """A share of time saved, at a length the study does not state; checked at 256 tokens."""
    return Published(
        source="swap study",
        label="fnet",
        seq_len=256,
        times=round(1 / (1 - saved), 2),
        direction=direction,
        subject="encoder",
        device=device,
    )


PUBLISHED = (
    *(
        _spectral(n, times)
        for n, times in (
            (128, 1.7),
            (256, 3.1),
            (512, 9.7),
            (1024, 19.8),
            (2048, 222.7),
            (2048, 52),
        )
    ),
    *(_spectral(n, times, measure="memory") for n, times in ((512, 4.8), (1024, 2.8), (2048, 3.3))),
    _spectral(512, 8.5, direction="forward_backward"),
    _spectral(512, 2.5, subject="block"),
    Published(source="fourier study", label="fourier", seq_len=512, times=5),
    Published(source="fourier study", label="fourier", seq_len=512, times=3.3, measure="memory"),
    *(
        Published(source="efficient-attention study", label=label, seq_len=n, times=1)
        for label in ("topk", "local")
        for n in (256, 512, 1024)
    ),
    _swap("forward", "cpu", 0.43),
    _swap("train_step", "cpu", 0.33),
    _swap("forward", "cuda", 0.24),
    _swap("train_step", "cuda", 0.09),
)
"""Figures of published studies, measured there against a naive attention on other machines. The
spectral study's own two tables give 222.7x and 52x at N = 2,048."""


def statements(rows: Iterable[Row]) -> list[str]:
    """What the run does and does not support, each sentence from its rows."""
    every = list(rows)
    rows = [row for row in every if not is_finetuning(row)]
    found = []
    for subject in ("mixer", "encoder"):
        part = comparable(rows, subject)
        for direction in (*DIRECTIONS, "train_step"):
            sweep = Sweep(part, direction)
            if FUSED not in sweep.cells:
                continue
            for label in sweep.labels:
                if label not in (NAIVE, FUSED):
                    found.append(_against_fused(sweep, label))
    return [
        *found,
        *_kernels(rows),
        *ranks.statements(rows),
        *_accuracy(rows),
        *training.statements([row for row in every if is_finetuning(row)]),
    ]


def _against_fused(sweep: Sweep, label: str) -> str:
    lengths = sorted({*sweep.measured(label)} & {*sweep.measured(FUSED)})
    direction = DIRECTIONS.get(sweep.direction, sweep.direction.replace("_", " "))
    if not lengths:
        return (
            f"Whether {label} is faster than fused attention is not tested ({direction}): this run "
            "measured them at no length in common."
        )
    span = f"N = {lengths[0]:,} to {lengths[-1]:,}"
    everywhere, anywhere = f"at every length, {span}", f"at any length, {span}"
    if len(lengths) == 1:
        everywhere = anywhere = f"at N = {lengths[0]:,}"
    crossing = sweep.crossover(label, FUSED)
    if crossing.kind == "always":
        return f"{label} is faster than fused attention {everywhere} ({direction})."
    if crossing.kind == "never":
        return (
            f"{label} is not faster than fused attention {anywhere} ({direction}): not supported."
        )
    if crossing.kind == "from":
        return (
            f"{label} is faster than fused attention from {crossover(crossing)}; not below "
            f"({direction})."
        )
    return (
        f"Whether {label} is faster than fused attention {anywhere.replace('any', 'every')} is not "
        f"decided by this run ({direction}): the intervals overlap or the order changes."
    )


def _kernels(rows: Sequence[Row]) -> list[str]:
    """Each implementation against each everyday choice, in the geometric mean over shapes."""
    found = []
    for (op, direction, ours), against in kernel_ratios(rows).items():
        parts = [
            f"{number(math.exp(statistics.fmean(map(math.log, ratios))))}x {theirs} "
            f"({number(min(ratios))} to {number(max(ratios))} over {len(ratios)} shapes)"
            for theirs, ratios in against.items()
        ]
        name = DIRECTIONS.get(direction, direction)
        found.append(f"{op}, {ours}, {name}: speed against {', '.join(parts)}.")
    return found


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
    fewer = [f"{one.seeds} seeds of {one.mixer} finished. " for one in found if one.failed]
    seeds = len(attention.accuracies) + len(attention.failed)
    return [
        f"Accuracy on digits at equal training time, {seeds} seeds: {'; '.join(parts)}. "
        f"{''.join(fewer)}"
        "One small task says nothing about language."
    ]


def published_verdicts(rows: Sequence[Row]) -> list[tuple[Published, Verdict, str]]:
    """Each published claim against each baseline: (claim, verdict, measured here)."""
    cases = [row for row in rows if not is_finetuning(row)]
    return [
        (claim, *claim.check(cases, baseline)) for claim in PUBLISHED for baseline in (NAIVE, FUSED)
    ]

"""The three findings of a run that matter most, each with its figure and its rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from flashmix.bench.store import Row
from flashmix.report.analysis import (
    DIRECTIONS,
    FUSED,
    NAIVE,
    Sweep,
    comparable,
    kernel_ratios,
    trainings,
)
from flashmix.report.finetuning import Outcome, accuracy, is_finetuning, outcomes
from flashmix.report.ranks import Pair, pairs
from flashmix.report.tables import crossover, interval, number

MANY = 3
LEAST_LEAD = 0.02
"""Where all train for the same time, the fastest is no finding."""


@dataclass(frozen=True)
class Finding:
    """A figure that stands out, what it says in a sentence, and the rows it comes from."""

    figure: str
    text: str
    rows: tuple[Row, ...] = ()


def findings(rows: Sequence[Row]) -> list[Finding]:
    """At most three, of the rows' most telling kind."""
    if any(map(is_finetuning, rows)):
        return _finetuned(outcomes(rows))[:MANY]
    if scaled := pairs(rows):
        return _over_ranks(scaled)[:MANY]
    found: list[Finding] = []
    for subject in ("mixer", "encoder"):
        part = comparable(rows, subject)
        for direction in ("forward", "forward_backward", "backward", "train_step"):
            sweep = Sweep(part, direction)
            found += [one for one in (_fastest(sweep), _from_where(sweep)) if one]
    found = [*found[:2], *_accuracies(rows), *found[2:]]
    smallest = _smallest(Sweep(comparable(rows), "forward_backward"))
    found[2:2] = [smallest] if smallest and not _accuracies(rows) else []
    return [*found, *_ops(rows), *_quadratic(rows)][:MANY]


def _over_ranks(scaled: Sequence[Pair]) -> list[Finding]:
    """Most speed-up, and least memory of a rank, at the longest N of a mixer."""
    fastest = max(scaled, key=lambda pair: pair.speedup.value)
    smallest = min(scaled, key=lambda pair: pair.memory)
    return [
        Finding(
            f"{number(fastest.speedup.value)}x",
            f"as fast as one rank, the most of any: {fastest.name}, {_name(fastest.direction)} "
            f"(95 % interval {number(fastest.speedup.low)} to {number(fastest.speedup.high)}).",
            fastest.rows,
        ),
        Finding(
            f"{number(smallest.memory)}x",
            f"the memory of one rank on each of several, the least of any: {smallest.name}, "
            f"{_name(smallest.direction)}.",
            smallest.rows,
        ),
    ]


def _name(direction: str) -> str:
    return DIRECTIONS.get(direction, direction.replace("_", " "))


def _others(sweep: Sweep) -> list[str]:
    return [label for label in sweep.labels if label not in (NAIVE, FUSED)]


def _fastest(sweep: Sweep) -> Finding | None:
    """The largest speed-up over fused attention at the longest length measured with it."""
    lengths = sweep.measured(FUSED)
    labels = [label for label in _others(sweep) if lengths and sweep.ok(label, lengths[-1])]
    if not labels:
        return None
    n = lengths[-1]
    best = min(labels, key=lambda label: sweep.cells[label][n]["median_ms"])
    value = sweep.speedup(best, FUSED, n)
    assert value is not None
    rows = (sweep.cells[best][n], sweep.cells[FUSED][n])
    where = f"{best}, {_name(sweep.direction)} at N = {n:,}"
    where += f" (95 % interval {number(value.low)} to {number(value.high)})."
    text = "the speed of fused attention, too close to call"
    if value.low > 1:
        text = "as fast as fused attention"
    elif value.high < 1:
        text = "the speed of fused attention, the most that any mixer reaches"
    text += f": {where}"
    return Finding(f"{number(value.value)}x", text, rows)


def _from_where(sweep: Sweep) -> Finding | None:
    """How many mixers pass fused attention, and from which length."""
    labels = _others(sweep)
    if not labels or len(sweep.measured(FUSED)) < 2:
        return None
    groups: dict[str, list[str]] = {}
    for label in labels:
        crossing = sweep.crossover(label, FUSED)
        at = f"{label} from {crossover(crossing)}" if crossing.kind == "from" else label
        groups.setdefault(crossing.kind, []).append(at)
    ahead = [*groups.get("always", ()), *groups.get("from", ())]
    parts = []
    if "always" in groups:
        parts.append(f"at every length {', '.join(groups['always'])}")
    if "from" in groups:
        parts.append("; ".join(groups["from"]))
    if "never" in groups:
        parts.append(f"at none {', '.join(groups['never'])}")
    if "unclear" in groups:
        parts.append(f"undecided {', '.join(groups['unclear'])}")
    text = f"mixers pass fused attention, {_name(sweep.direction)}: "
    rows = tuple(row for label in (*labels, FUSED) for row in sweep.cells[label].values())
    return Finding(f"{len(ahead)} of {len(labels)}", text + "; ".join(parts) + ".", rows)


def _accuracies(rows: Sequence[Row]) -> list[Finding]:
    found = [one for one in trainings(rows) if one.accuracies]
    if len(found) < 2:
        return []
    mean = {one.mixer: statistics.fmean(one.accuracies) for one in found}
    best = max(found, key=lambda one: mean[one.mixer])
    text = f"held-out accuracy on handwritten digits at equal training time: {best.mixer}"
    text += f", mean of {best.seeds} seeds"
    attention = next((one for one in found if one.mixer == "attention"), None)
    if attention is not None and attention is not best:
        text += f". Attention: {100 * mean['attention']:.1f} %"
    used = (*best.rows, *(attention.rows if attention else ()))
    return [Finding(f"{100 * mean[best.mixer]:.1f} %", text + ".", used)]


def _smallest(sweep: Sweep) -> Finding | None:
    """The lowest peak of memory against fused attention."""
    lengths = sweep.measured(FUSED)
    labels = [label for label in _others(sweep) if lengths and sweep.ok(label, lengths[-1])]
    if not labels:
        return None
    n = lengths[-1]
    peak = {label: sweep.cells[label][n]["peak_mb"] for label in (*labels, FUSED)}
    best = min(labels, key=peak.__getitem__)
    if not peak[FUSED]:
        return None
    return Finding(
        f"{number(peak[best] / peak[FUSED])}x",
        f"the peak memory of fused attention, forward + backward, N = {n:,}: {best} needs "
        f"{number(peak[best])} MB, fused attention {number(peak[FUSED])} MB.",
        (sweep.cells[best][n], sweep.cells[FUSED][n]),
    )


def _ops(rows: Sequence[Row]) -> list[Finding]:
    """Each implementation against the everyday choice it beats or loses to least."""
    found = []
    for (op, direction, ours), against in kernel_ratios(rows).items():
        theirs, ratios = min(
            against.items(), key=lambda item: statistics.fmean(map(math.log, item[1]))
        )
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        text = f"{op}, {ours}, {_name(direction)}: geometric mean over {len(ratios)} shapes "
        text += f"against {theirs} ({number(min(ratios))} to {number(max(ratios))})."
        used = [
            row
            for row in rows
            if (row.get("op"), row["direction"]) == (op, direction)
            and row["label"] in (ours, theirs)
        ]
        found.append((mean, Finding(f"{number(mean)}x", text, tuple(used))))
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])]


def _quadratic(rows: Sequence[Row]) -> list[Finding]:
    """How naive attention grows, where nothing else was measured beside it."""
    found = []
    for direction in ("forward", "backward"):
        sweep = Sweep(comparable(rows), direction)
        exponent = sweep.exponent(NAIVE) if NAIVE in sweep.cells else None
        if exponent:
            text = f"is the exponent of naive attention's time in N, {direction}: "
            text += f"{interval(exponent, '')}; 2 is quadratic."
            used = tuple(sweep.cells[NAIVE].values())
            found.append(Finding(f"{exponent.value:.2f}", text, used))
    return found


def _finetuned(found: Sequence[Outcome]) -> list[Finding]:
    """The most accurate model, the fastest, and the fastest that keeps nearly all accuracy."""
    scored = [one for one in found if one.mean(accuracy) is not None]
    if not scored:
        return []
    task = scored[0].task
    scored = [one for one in scored if one.task == task]
    score = {id(one): one.mean(accuracy) or 0.0 for one in scored}
    best = max(scored, key=lambda one: score[id(one)])
    result = [
        Finding(
            f"{100 * score[id(best)]:.1f} %",
            f"accuracy on {task}, the highest: {best.mixers}, mean of {len(best.ok)} "
            f"{'seed' if len(best.ok) == 1 else 'seeds'}.",
            best.ok,
        )
    ]
    for name, what in (("infer_ms", "inference"), ("train_seconds", "training")):
        base = next((one for one in scored if set(one.mixers.split(",")) == {"attention"}), None)
        timed = [one for one in scored if one.mean(name)]
        if base is None or base not in timed or len(timed) < 2:
            continue
        others = [one for one in timed if one is not base]
        fastest = min(others, key=lambda one: one.mean(name) or math.inf)
        times = (base.mean(name) or 0.0) / (fastest.mean(name) or math.inf)
        if abs(times - 1) < LEAST_LEAD:
            continue
        if not score[id(base)]:
            continue
        kept = 100 * score[id(fastest)] / score[id(base)]
        text = f"as fast in {what} as attention on {task}: {fastest.mixers}, with "
        text += f"{kept:.1f} % of its accuracy."
        if times < 1:
            text = f"is the most that a mixer reaches of attention's speed in {what} on {task}: "
            text += f"{fastest.mixers}, with {kept:.1f} % of its accuracy."
        result.append(Finding(f"{number(times)}x", text, (*fastest.ok, *base.ok)))
    return result

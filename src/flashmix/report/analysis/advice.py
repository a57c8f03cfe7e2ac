"""Which mixer is cheapest at a shape, read off the rows of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.errors import ArgumentError
from flashmix.report.analysis.timings import Sweep, is_full, log_medians
from flashmix.report.analysis.training import is_finetuning

Basis = Literal["measured", "interpolated", "extrapolated"]


@dataclass(frozen=True)
class Advice:
    """What a mixer would cost: time of one call and peak memory, and how far that is measured."""

    label: str
    time_ms: Interval
    peak_mb: float
    basis: Basis


def advise(rows: Sequence[Row], dim: int, seq_len: int, direction: str) -> list[Advice]:
    """Mixers by their time at ``seq_len`` and ``dim``, the cheapest first.

    Between two measured lengths, and beyond them, time and memory follow a line on log-log. Where
    ``dim`` was not measured, the nearest width's figures are scaled by the ratio of widths, which
    is too little for mixers with projections: the basis is then "extrapolated".

    Raises:
        ArgumentError: the run has no such direction, or fewer than two lengths.
    """
    mixers = [
        row
        for row in rows
        if not is_finetuning(row)
        and row.get("subject", "mixer") == "mixer"
        and row.get("autocast") is None
        and is_full(row)
        and row["direction"] == direction
    ]
    if any(map(is_finetuning, rows)):
        raise ArgumentError("the run holds trainings; advice needs a run that measured mixers")
    if not mixers:
        raise ArgumentError(f"the run has no mixers measured in direction {direction!r}")
    nearest = min({row["dim"] for row in mixers}, key=lambda d: abs(math.log(d / dim)))
    sweep = Sweep((row for row in mixers if row["dim"] == nearest), direction)
    if len(sweep.seq_lens) < 2:
        raise ArgumentError("the run has fewer than two lengths; advice needs a sweep over N")
    found = []
    for label in sweep.labels:
        lengths = sweep.measured(label)
        if len(lengths) >= 2:
            cells = [sweep.cells[label][n] for n in lengths]
            found.append(_advice(label, lengths, cells, seq_len, dim / nearest))
    return sorted(found, key=lambda advice: advice.time_ms.value)


def _advice(
    label: str, lengths: Sequence[int], rows: Sequence[Row], seq_len: int, width_ratio: float
) -> Advice:
    basis: Basis = "interpolated"
    if seq_len in lengths:
        basis = "measured"
    if not lengths[0] <= seq_len <= lengths[-1] or width_ratio != 1:
        basis = "extrapolated"
    above = next((i for i, n in enumerate(lengths) if n >= seq_len), len(lengths) - 1)
    right = max(1, above)
    left = right - 1
    part = math.log(seq_len / lengths[left]) / math.log(lengths[right] / lengths[left])

    def between(a: float, b: float) -> float:
        return width_ratio * math.exp((1 - part) * math.log(a) + part * math.log(b))

    try:
        between(rows[left]["median_ms"], rows[right]["median_ms"])
        between(max(rows[left]["peak_mb"], 1e-6), max(rows[right]["peak_mb"], 1e-6))
    except OverflowError:
        raise ArgumentError(f"N = {seq_len:.3g} is too far from the lengths measured") from None
    draws = [log_medians(rows[i], i) for i in (left, right)]
    low, high = np.percentile((1 - part) * draws[0] + part * draws[1], [2.5, 97.5])
    return Advice(
        label=label,
        time_ms=Interval(
            between(rows[left]["median_ms"], rows[right]["median_ms"]),
            width_ratio * math.exp(low),
            width_ratio * math.exp(high),
        ),
        peak_mb=between(max(rows[left]["peak_mb"], 1e-6), max(rows[right]["peak_mb"], 1e-6)),
        basis=basis,
    )

"""Charts of a sweep over N: time, memory, speed-ups, growth, time relative to a copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flashmix.bench.case import COPY
from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.report.analysis.timings import DIRECTIONS, FUSED, NAIVE, Sweep
from flashmix.report.charts.lines import LineChart, Lines, Point, guides, source
from flashmix.report.tables import crossover, interval, number
from flashmix.visualize.chart import Chart

MIXER = {"label": "mixer", "N": "N"}


def sweep_charts(sweep: Sweep, where: str) -> list[Chart]:
    """Every chart that the rows of one direction give; ``where`` says at which shape."""
    found = [_time(sweep, where), _memory(sweep, where)]
    found += [
        _speedup(sweep, baseline, where) for baseline in (FUSED, NAIVE) if sweep.measured(baseline)
    ]
    found += [_growth(sweep, where), _against_copy(sweep, where)]
    return [chart for chart in found if chart is not None]


def direction_name(direction: str) -> str:
    """A direction in words."""
    return DIRECTIONS.get(direction, direction.replace("_", " "))


def _chart(kind: str, sweep: Sweep, lines: Lines, title: str, text: str) -> Chart | None:
    if not lines.points:
        return None
    name = f"{kind}-{sweep.direction.replace('_', '-')}"
    title = f"{title}, {direction_name(sweep.direction)}"
    return LineChart(name, title, text, lines.spec(), lines.labels, lines)


def _point(label: str, n: int, y: float, *rows: Row, **rest: Any) -> Point:
    return {"label": label, "n": n, "N": f"{n:,}", "y": y, "rows": source(*rows), **rest}


def _bounds(value: Interval) -> dict[str, float]:
    return {"low": value.low, "high": value.high}


def _failed(sweep: Sweep) -> list[Point]:
    return [
        _point(label, n, 0.0, row, status=row["status"])
        for label, cells in sweep.cells.items()
        for n, row in cells.items()
        if row["status"] != "ok"
    ]


def _time(sweep: Sweep, where: str) -> Chart | None:
    points = []
    for label in sweep.cells:
        for n in sweep.measured(label):
            row = sweep.cells[label][n]
            quartiles = {"low": row["q1_ms"], "high": row["q3_ms"]}
            text = f"{number(row['median_ms'])} ({number(row['q1_ms'])} to {number(row['q3_ms'])})"
            points.append(_point(label, n, row["median_ms"], row, text=text, **quartiles))
    slopes = {label: sweep.exponent(label) for label in sweep.labels}
    names = {label: f"{label} · {slope.value:.2f}" for label, slope in slopes.items() if slope}
    crossings = [
        {**point, "y": _between(sweep, point["label"], point["n"])}
        for point in _crossings(sweep, FUSED, spans=False)
    ]
    lines = Lines(
        points=points,
        y_title="time of one call (ms)",
        tooltip={**MIXER, "text": "median and quartiles (ms)"},
        names=names,
        failed=_failed(sweep),
        crossings=crossings,
    )
    lines.guides = _guides(sweep.seq_lens, points, ("n", "n log n", "n²"))
    alone = any("host_ms" in row for cells in sweep.cells.values() for row in cells.values())
    where += ", GPU time only" if alone else ""
    text = f"{where}. Medians; bars are quartiles. After each name: the fitted slope of log time "
    text += "against log N. Dotted guides show n, n log n and n²."
    if crossings:
        text += " A diamond marks the N from which a mixer stays faster than fused attention."
    return _chart("time", sweep, lines, "Time against N", text)


def _guides(lengths: Sequence[int], points: Sequence[Point], names: Sequence[str]) -> list[Point]:
    """Guides that begin between the copy and the lowest mixer, where there is room for them."""
    first = [point for point in points if point["n"] == lengths[0]]
    lowest = min((point["y"] for point in first if point["label"] != COPY), default=None)
    if lowest is None or len(lengths) < 3:
        return []
    copy = next((point["y"] for point in first if point["label"] == COPY), lowest / 2)
    return guides(lengths, max(math.sqrt(copy * lowest), 0.1 * lowest), names)


def _between(sweep: Sweep, label: str, n: float) -> float:
    """The time of ``label`` at ``n``, on a line between the measured ones on log-log."""
    lengths = sweep.measured(label)
    right = next((i for i, length in enumerate(lengths) if length >= n), len(lengths) - 1)
    right = max(right, 1)
    a, b = lengths[right - 1], lengths[right]
    y0, y1 = (math.log(sweep.cells[label][length]["median_ms"]) for length in (a, b))
    return math.exp(y0 + (y1 - y0) * math.log(n / a) / math.log(b / a))


def _crossings(sweep: Sweep, baseline: str, *, spans: bool = True) -> list[Point]:
    found = []
    for label in sweep.labels:
        if label in (NAIVE, FUSED):
            continue
        crossing = sweep.crossover(label, baseline)
        if crossing.kind == "from" and crossing.at is not None:
            rows = [row for name in (label, baseline) for row in sweep.cells[name].values()]
            sentence = f"faster than {baseline} from {crossover(crossing)}"
            at = {"n": crossing.at.value, "y": 1.0, **(_bounds(crossing.at) if spans else {})}
            found.append({"label": label, **at, "sentence": sentence, "rows": source(*rows)})
    return found


def _memory(sweep: Sweep, where: str) -> Chart | None:
    points = [
        _point(label, n, row["peak_mb"], row, text=number(row["peak_mb"]))
        for label in sweep.labels
        for n in sweep.measured(label)
        if (row := sweep.cells[label][n])["peak_mb"] > 0
    ]
    lines = Lines(
        points=points,
        y_title="peak memory (MB)",
        tooltip={**MIXER, "text": "peak (MB)"},
        failed=_failed(sweep),
    )
    lines.guides = _guides(sweep.seq_lens, points, ("n", "n²"))
    text = f"{where}. Tensors allocated during one call, beyond inputs and weights."
    return _chart("memory", sweep, lines, "Peak memory against N", text)


def _speedup(sweep: Sweep, baseline: str, where: str) -> Chart | None:
    points = []
    for label in sweep.labels:
        for n in sweep.seq_lens:
            value = sweep.speedup(label, baseline, n)
            if label != baseline and value is not None:
                rows = sweep.cells[label][n], sweep.cells[baseline][n]
                text = interval(value)
                points.append(_point(label, n, value.value, *rows, text=text, **_bounds(value)))
    lines = Lines(
        points=points,
        y_title="times as fast",
        tooltip={**MIXER, "text": f"against {baseline}"},
        levels={1.0: baseline},
        crossings=_crossings(sweep, baseline),
        suffix="x",
    )
    text = f"{where}. Above 1x is faster. Bars: 95 % bootstrap intervals of the ratio of medians."
    if lines.crossings:
        text += (
            " A diamond on the line marks the N from which a mixer stays faster, with its interval."
        )
    return _chart(
        "speedup-" + ("fused" if baseline == FUSED else "naive"),
        sweep,
        lines,
        f"Speed against {baseline}",
        text,
    )


def _growth(sweep: Sweep, where: str) -> Chart | None:
    points = []
    for label in sweep.labels:
        for n, value in sweep.growth(label):
            rows = sweep.cells[label][n // 2], sweep.cells[label][n]
            text = f"{interval(value)}, from N = {n // 2:,}"
            points.append(_point(label, n, value.value, *rows, text=text, **_bounds(value)))
    if len({point["n"] for point in points}) < 2:
        return None
    lines = Lines(
        points=points,
        x_title="N, after the doubling (tokens)",
        y_title="time at N over time at N / 2",
        tooltip={**MIXER, "text": "growth"},
        levels={2.0: "linear", 4.0: "quadratic"},
        suffix="x",
    )
    text = f"{where}. How much longer one call takes when N doubles; bars: 95 % intervals."
    return _chart("growth", sweep, lines, "Growth per doubling of N", text)


def _against_copy(sweep: Sweep, where: str) -> Chart | None:
    points = []
    for label in sweep.labels:
        for n in sweep.measured(label):
            row, copy = sweep.cells[label][n], sweep.ok(COPY, n)
            if row.get("floor_ms"):
                times = row["median_ms"] / row["floor_ms"]
                rows = (row, copy) if copy else (row,)
                points.append(_point(label, n, times, *rows, text=f"{number(times)}x"))
    lines = Lines(
        points=points,
        y_title="multiples of the time of a copy",
        tooltip={**MIXER, "text": "of the copy's time"},
        levels={1.0: COPY},
        suffix="x",
    )
    text = (
        f"{where}. Time over the time to read and write [B, N, D] once (twice with the backward): "
        "no mixer can be faster."
    )
    return _chart("copy", sweep, lines, "Time relative to a copy", text)

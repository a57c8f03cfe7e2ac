"""Charts of suite ``parallel``: speed-up against ranks and N, memory per rank, bytes sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashmix.bench.store import Row
from flashmix.report.analysis.parallel import Pair, pairs
from flashmix.report.analysis.timings import DIRECTIONS
from flashmix.report.charts.lines import LineChart, Lines, Point, source
from flashmix.report.tables import interval, number
from flashmix.visualize.chart import Chart


def rank_charts(rows: Sequence[Row]) -> list[Chart]:
    """Every chart of the suite's rows, for each direction."""
    found: list[Chart] = []
    for direction in DIRECTIONS:
        scaled = [pair for pair in pairs(rows) if pair.direction == direction]
        if scaled:
            found += [_against_ranks(scaled), _against_n(scaled), _memory(scaled)]
            counted = [pair for pair in _most(scaled) if "sent_bytes" in pair.several]
            found += [_bytes(counted)] if counted else []
        graphs = [pair for pair in pairs(rows, graph=True) if pair.direction == direction]
        found += [_against_n(graphs, graph=True)] if graphs else []
    return found


def _chart(kind: str, pair: Pair, lines: Lines, title: str, text: str) -> Chart:
    row, direction = pair.several, DIRECTIONS[pair.direction]
    where = f"Batch {row['batch']}, width {row['dim']}, {row['dtype']}, {row['device']}. "
    name = f"{kind}-{pair.direction.replace('_', '-')}"
    title = f"{title}, {direction}"
    return LineChart(name, title, where + text, lines.spec(), lines.labels, lines)


def _point(pair: Pair, n: int, y: float, text: str, **rest: Any) -> Point:
    row = pair.several
    shown = {"N": f"{row['seq_len']:,}", "ranks": f"{row['ranks']}", "text": text}
    return {"label": row["mixer"], "n": n, "y": y, "rows": source(*pair.rows), **shown, **rest}


def _speed(pair: Pair, n: int) -> Point:
    value = pair.speedup
    return _point(pair, n, value.value, interval(value), low=value.low, high=value.high)


TOOLTIP = {"label": "mixer", "N": "N", "ranks": "ranks"}


def _most(scaled: Sequence[Pair]) -> list[Pair]:
    """Those over the most ranks."""
    most = max(pair.several["ranks"] for pair in scaled)
    return [pair for pair in scaled if pair.several["ranks"] == most]


def _against_ranks(scaled: Sequence[Pair]) -> Chart:
    longest: dict[str, int] = {}
    for pair in scaled:
        mixer, n = pair.single["mixer"], pair.single["seq_len"]
        longest[mixer] = max(n, longest.get(mixer, 0))
    at_longest = [
        pair for pair in scaled if pair.single["seq_len"] == longest[pair.single["mixer"]]
    ]
    points = []
    for mixer in longest:
        some = [pair for pair in at_longest if pair.single["mixer"] == mixer]
        points.append({**_point(some[0], 1, 1.0, "1x"), "ranks": "1"})
        points += [_speed(pair, pair.several["ranks"]) for pair in some]
    counts = sorted({point["n"] for point in points})
    lines = Lines(
        points=points,
        x_title="ranks",
        y_title="times as fast as one rank",
        tooltip={**TOOLTIP, "text": "speed-up"},
        guides=[{"label": "ideal", "n": n, "y": float(n)} for n in counts],
        suffix="x",
    )
    text = "Each mixer at the longest N it was measured at; bars: 95 % intervals. Dotted: ideal."
    return _chart("ranks-speedup", scaled[0], lines, "Speed-up against ranks", text)


def _against_n(scaled: Sequence[Pair], *, graph: bool = False) -> Chart:
    most = _most(scaled)
    ranks = most[0].several["ranks"]
    lines = Lines(
        points=[_speed(pair, pair.single["seq_len"]) for pair in most],
        y_title="times as fast as one rank",
        tooltip={**TOOLTIP, "text": "speed-up"},
        levels={1.0: "one rank", float(ranks): "ideal"},
        suffix="x",
    )
    text = f"{ranks} ranks. Above 1x is faster than one rank; bars: 95 % intervals."
    if graph:
        text += " Both replay CUDA graphs, without Python's time."
        title = "Speed-up against N, as CUDA graphs"
        return _chart("ranks-graph-n", scaled[0], lines, title, text)
    return _chart("ranks-speedup-n", scaled[0], lines, "Speed-up against N", text)


def _memory(scaled: Sequence[Pair]) -> Chart:
    most = _most(scaled)
    ranks = most[0].several["ranks"]
    lines = Lines(
        points=[
            _point(
                pair,
                pair.single["seq_len"],
                pair.memory,
                f"{number(pair.several['peak_mb'])} of {number(pair.single['peak_mb'])} MB",
            )
            for pair in most
        ],
        y_title="peak memory per rank / one rank",
        tooltip={**TOOLTIP, "text": "peak per rank"},
        levels={1.0: "one rank", 1 / ranks: "ideal"},
        suffix="x",
    )
    text = f"{ranks} ranks. Tensors allocated during one call on the rank that holds most."
    return _chart("ranks-memory", scaled[0], lines, "Memory per rank against N", text)


def _bytes(most: Sequence[Pair]) -> Chart:
    points, derived = [], []
    for pair in most:
        row, n = pair.several, pair.single["seq_len"]
        text = f"{number(row['sent_bytes'] / 1e6)} MB"
        if row["derived_bytes"] is not None:
            text += f"; derived {number(row['derived_bytes'] / 1e6)}"
            derived.append(
                {"label": f"{row['mixer']}, derived", "n": n, "y": row["derived_bytes"] / 1e6}
            )
        points.append(_point(pair, n, row["sent_bytes"] / 1e6, text))
    lines = Lines(
        points=points,
        y_title="sent by a rank in one call (MB)",
        tooltip={**TOOLTIP, "text": "sent"},
        guides=derived,
    )
    text = (
        f"{most[0].several['ranks']} ranks. Counted at PyTorch's collectives, on the rank that "
        "sends most; dotted: derived by formula."
    )
    return _chart("ranks-bytes", most[0], lines, "Bytes sent by a rank against N", text)

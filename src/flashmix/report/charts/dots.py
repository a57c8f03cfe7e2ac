"""Dots and bars by name: parameters, and what was measured at a single shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashmix.bench.case import COPY
from flashmix.bench.store import Row
from flashmix.report.analysis.models import model_shape, vanilla
from flashmix.report.analysis.timings import FUSED, NAIVE, is_full, time_ratio
from flashmix.report.charts.lines import NUMBER, Point, source
from flashmix.report.tables import interval, number
from flashmix.visualize import theme
from flashmix.visualize.chart import (
    SHOWN,
    WIDTH,
    Chart,
    altair,
    log_domain,
    log_ticks,
    shown_parameter,
)

ROW_HEIGHT = 26


def _labels(points: Sequence[Point]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(point["label"] for point in points))


def _y(points: Sequence[Point], field: str = "label") -> Any:
    alt = altair()
    order = list(dict.fromkeys(point[field] for point in points))
    return alt.Y(f"{field}:N", sort=order, title=None, axis=alt.Axis(labelLimit=240, ticks=False))


def _colour(points: Sequence[Point], *, legend: bool = False) -> Any:
    alt = altair()
    domain, colours = theme.colours(_labels(points))
    return alt.Color(
        "label:N",
        scale=alt.Scale(domain=domain, range=colours),
        legend=alt.Legend(orient="top", title=None) if legend else None,
    )


def _tooltip(title: str) -> list[Any]:
    alt = altair()
    return [
        alt.Tooltip("label:N", title="mixer"),
        alt.Tooltip("text:N", title=title),
        alt.Tooltip("rows:N", title="row"),
    ]


def _finished(layers: Sequence[Any], points: Sequence[Point], rows: int) -> dict[str, Any]:
    alt = altair()
    chart = alt.layer(*layers).properties(width=WIDTH, height=ROW_HEIGHT * rows)
    return dict(chart.add_params(shown_parameter(_labels(points))).to_dict(validate=False))


def bars(name: str, title: str, text: str, unit: str, points: Sequence[Point]) -> Chart:
    """Horizontal bars from zero, each with its value written beside it."""
    alt = altair()
    base = alt.Chart(alt.InlineData(values=[*points])).transform_filter(SHOWN).encode(_y(points))
    top = max(point["x"] for point in points) or 1
    axis = alt.Axis(format=",.0f", tickCount=4)
    x = alt.X("x:Q", title=unit, axis=axis, scale=alt.Scale(domain=[0, 1.18 * top], nice=False))
    bar = base.mark_bar(size=13, cornerRadiusEnd=3).encode(
        x, _colour(points), tooltip=_tooltip(unit)
    )
    value = base.mark_text(align="left", dx=6, color=theme.INK.light).encode(x, text="text:N")
    return Chart(name, title, text, _finished([bar, value], points, len(points)), _labels(points))


def dots(
    name: str,
    title: str,
    text: str,
    unit: str,
    points: Sequence[Point],
    *,
    level: float | None = None,
    field: str = "label",
) -> Chart:
    """Dots on a logarithmic axis with their interval; ``field`` names the rows of the chart."""
    alt = altair()
    values = [point[key] for point in points for key in ("x", "low", "high") if key in point]
    domain = log_domain(values if level is None else [*values, level])
    suffix = "" if level is None else "x"
    scale = alt.Scale(type="log", domain=domain, nice=False)
    x = alt.X(
        "x:Q",
        title=unit,
        scale=scale,
        axis=alt.Axis(
            values=log_ticks(*domain), labelExpr=f"format(datum.value, '{NUMBER}') + '{suffix}'"
        ),
    )
    base = (
        alt.Chart(alt.InlineData(values=[*points]))
        .transform_filter(SHOWN)
        .encode(_y(points, field))
    )
    colour = _colour(points, legend=field != "label")
    layers = []
    if level is not None:
        rule = alt.Chart(alt.InlineData(values=[{"x": level}])).mark_rule(
            color=theme.MUTED.light, strokeDash=[4, 3], aria=False
        )
        layers.append(rule.encode(x))
    if any("low" in point for point in points):
        span = base.mark_rule(strokeWidth=2, opacity=0.6, aria=False)
        low = alt.X("low:Q", title=unit, scale=scale)
        layers.append(span.encode(low, colour, x2="high:Q"))
    layers.append(base.mark_point(size=80).encode(x, colour, tooltip=_tooltip(unit)))
    if field == "label":
        value = base.mark_text(align="left", dy=-11, dx=-4, fontSize=11, color=theme.MUTED.light)
        layers.append(value.encode(x, text="short:N"))
    rows = len({point[field] for point in points})
    return Chart(name, title, text, _finished(layers, points, rows), _labels(points))


def parameter_chart(rows: Sequence[Row]) -> Chart | None:
    """Parameters of each mixer at the width of ``rows``."""
    plain = [row for row in rows if row.get("autocast") is None and not row.get("checkpoint")]
    first = {row["label"]: row for row in reversed(plain) if row["label"] != COPY}
    points = [
        {"label": label, "x": row["params"], "text": f"{row['params']:,}", "rows": source(row)}
        for label, row in reversed(first.items())
        if row.get("params") is not None
    ]
    if len(points) < 2:
        return None
    text = f"Learned parameters at width {rows[0]['dim']}."
    return bars("parameters", "Parameters", text, "parameters", points)


def single_charts(rows: Sequence[Row], direction: str, where: str) -> list[Chart]:
    """Time, and speed against fused attention, of what was measured at one length only."""
    ok = [row for row in rows if row["status"] == "ok" and row["label"] != COPY]
    if len(ok) < 2:
        return []
    stem = direction.replace("_", "-")
    name = direction.replace("_", " + ") if direction == "forward_backward" else direction
    times = [
        {
            "label": row["label"],
            "x": row["median_ms"],
            "low": row["q1_ms"],
            "high": row["q3_ms"],
            "short": number(row["median_ms"]),
            "text": f"{number(row['median_ms'])} ({number(row['q1_ms'])} to "
            f"{number(row['q3_ms'])})",
            "rows": source(row),
        }
        for row in ok
    ]
    text = f"{where}. Medians; bars are quartiles."
    found = [dots(f"time-{stem}", f"Time, {name}", text, "time of one call (ms)", times)]
    for baseline, kind in ((FUSED, "fused"), (NAIVE, "naive")):
        base = next((row for row in ok if row["label"] == baseline), None)
        against = [(row, time_ratio(base, row)) for row in ok if row is not base] if base else []
        points = [
            {
                "label": row["label"],
                "x": value.value,
                "low": value.low,
                "high": value.high,
                "short": f"{number(value.value)}x",
                "text": interval(value),
                "rows": source(row, base),
            }
            for row, value in against
            if base
        ]
        if points:
            text = f"{where}. Above 1x is faster. Bars: 95 % intervals of the ratio of medians."
            title = f"Speed against {baseline}, {name}"
            found.append(
                dots(f"speedup-{kind}-{stem}", title, text, "times as fast", points, level=1.0)
            )
    return found


def copy_chart(op: str, direction: str, rows: Sequence[Row]) -> Chart | None:
    """Multiples of the copy's time for each shape of an op, a dot for each implementation."""
    points = []
    for row in rows:
        if row["status"] == "ok" and row.get("floor_ms") and row["label"] != COPY:
            times = row["median_ms"] / row["floor_ms"]
            sizes = [f"{k} {row[k]}" for k in ("window", "topk", "modes") if row.get(k)]
            shape = ", ".join([f"[{row['batch']}, {row['seq_len']}, {row['dim']}]", *sizes])
            shape += "" if is_full(row) else ", padded"
            points.append(
                {
                    "label": row["label"],
                    "shape": shape,
                    "x": times,
                    "text": f"{number(row['median_ms'])} ms, {number(times)}x a copy, {shape}",
                    "rows": source(row),
                }
            )
    if not points:
        return None
    stem = direction.replace("_", "-")
    title = f"{op}, {direction.replace('_', ' + ')}: time relative to a copy"
    text = "Time over the time to copy the input once (twice for the backward), by shape."
    return dots(
        f"copy-{op}-{stem}",
        title,
        text,
        "multiples of the time of a copy",
        points,
        level=1.0,
        field="shape",
    )


def model_charts(rows: Sequence[Row]) -> list[Chart]:
    """Speed of whole encoders against the vanilla SDPA one padded alike, by direction."""
    found = []
    for direction in dict.fromkeys(row["direction"] for row in rows if row.get("model")):
        points = []
        for row in rows:
            base = vanilla(rows, row)
            if row["direction"] != direction or row is base or base is None:
                continue
            if row["status"] != "ok":
                continue
            value, where = time_ratio(base, row), model_shape(row)
            points.append(
                {
                    "label": row["label"],
                    "shape": where,
                    "x": value.value,
                    "low": value.low,
                    "high": value.high,
                    "text": f"{interval(value)}, {where}",
                    "rows": source(row, base),
                }
            )
        if points:
            name = direction.replace("_", " ")
            text = "Above 1x is faster. Bars: 95 % intervals of the ratio of medians."
            title = f"Speed against the vanilla SDPA model, {name}"
            unit, stem = "times as fast", direction.replace("_", "-")
            found.append(dots(f"model-{stem}", title, text, unit, points, level=1.0, field="shape"))
    return found

"""Accuracy against its price, with the Pareto front, and training curves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flashmix.bench.store import Row
from flashmix.report.analysis.training import accuracy, mixers_name, outcomes, settings
from flashmix.report.charts.lines import Point, source
from flashmix.report.tables import number
from flashmix.visualize import theme
from flashmix.visualize.chart import (
    HEIGHT,
    LABEL_GAP,
    SHOWN,
    WIDTH,
    Chart,
    altair,
    shown_parameter,
    spread,
)

Measure = Callable[[Row], float | None]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, gain) points that no other beats in both, the cheapest first."""
    best, found = float("-inf"), []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            found.append(index)
    return found


def finetuning_charts(rows: Sequence[Row]) -> list[Chart]:
    """Accuracy against inference and training time, and the curves, by task and model."""
    every = outcomes(rows)
    pairs = settings(every)
    found = []
    for task, model in pairs:
        group = [outcome for outcome in every if (outcome.task, outcome.model) == (task, model)]
        where = f"{task}, {model}"
        stem = "" if len(pairs) == 1 else f"-{_slug(where)}"
        for name, get, title, unit in (
            ("infer", "infer_ms", "Accuracy against inference time", "inference (ms)"),
            ("train", "train_seconds", "Accuracy against training time", "training (s)"),
        ):
            found.append(
                accuracy_chart(
                    f"accuracy-{name}{stem}",
                    title,
                    where,
                    unit,
                    {outcome.mixers: outcome.ok for outcome in group},
                    _reader(get),
                    accuracy,
                )
            )
        ok = [row for outcome in group for row in outcome.ok]
        found.append(_curves(f"loss{stem}", "Loss", where, ok, ("train_loss", "val_loss"), "loss"))
        found.append(
            _curves(
                f"val-accuracy{stem}",
                "Validation accuracy",
                where,
                ok,
                ("val_accuracy",),
                "validation accuracy (%)",
            )
        )
    return [chart for chart in found if chart is not None]


def _reader(name: str) -> Measure:
    return lambda row: row.get(name)


def digits_chart(rows: Iterable[Row]) -> Chart | None:
    """Accuracy on digits against the time of one training step."""
    trained: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("direction") == "train" and row["status"] == "ok":
            trained.setdefault(row["mixer"], []).append(row)
    return accuracy_chart(
        "accuracy-digits",
        "Accuracy on handwritten digits against the time of a training step",
        "64 tokens, width 64, the same training time for all",
        "one training step (ms)",
        {mixer: tuple(group) for mixer, group in trained.items()},
        lambda row: 1e3 * row["train_seconds"] / row["steps"] if row["steps"] else None,
        lambda row: row["accuracy"],
    )


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def accuracy_chart(
    name: str,
    title: str,
    where: str,
    unit: str,
    groups: dict[str, tuple[Row, ...]],
    cost: Measure,
    gain: Measure,
) -> Chart | None:
    """Each seed as a small dot, the means as large ones with the front that none of them beats."""
    seeds: list[Point] = []
    means: list[Point] = []
    for label, rows in groups.items():
        pairs = [
            (x, y, row)
            for row in rows
            if (x := cost(row)) is not None and (y := gain(row)) is not None
        ]
        if not pairs:
            continue
        for x, y, row in pairs:
            seeds.append(_dot(label, x, y, f"seed {row.get('seed', '-')}", row))
        x = statistics.fmean(pair[0] for pair in pairs)
        y = statistics.fmean(pair[1] for pair in pairs)
        means.append(_dot(label, x, y, f"mean of {len(pairs)}", *(pair[2] for pair in pairs)))
    if len(means) < 2:
        return None
    front = [means[i] for i in pareto([(point["x"], point["y"]) for point in means])]
    text = (
        f"{where}. Large: mean over seeds; small: each seed. The line joins the mixers that no "
        "other beats in both measures (Pareto front): "
        + ", ".join(point["label"] for point in front)
        + "."
    )
    return Chart(
        name,
        f"{title}",
        text,
        _scatter(seeds, means, front, unit),
        tuple(point["label"] for point in means),
    )


def _dot(label: str, x: float, y: float, what: str, *rows: Row) -> Point:
    percent = 100 * y
    return {
        "label": label,
        "x": x,
        "y": percent,
        "what": what,
        "text": f"{percent:.1f} %",
        "cost": number(x),
        "rows": source(*rows),
    }


def _scatter(
    seeds: Sequence[Point], means: Sequence[Point], front: Sequence[Point], unit: str
) -> dict[str, Any]:
    alt = altair()
    labels = [point["label"] for point in means]
    right = max(point["x"] for point in seeds)
    ys = [point["y"] for point in seeds]
    margin = max(0.08 * (max(ys) - min(ys)), 0.5)
    x_domain, y_domain = (0.0, 1.1 * right), (min(ys) - margin, min(max(ys) + margin, 100.5))
    domain, colours = theme.colours(labels)
    axis = alt.Axis(tickCount=6, grid=False)
    x = alt.X("x:Q", title=unit, axis=axis, scale=alt.Scale(domain=x_domain, nice=False))
    y = alt.Y(
        "y:Q",
        title="accuracy (%)",
        axis=alt.Axis(tickCount=6),
        scale=alt.Scale(domain=y_domain, nice=False),
    )
    colour = alt.Color("label:N", scale=alt.Scale(domain=domain, range=colours), legend=None)
    tooltip = [
        alt.Tooltip("label:N", title="mixer"),
        alt.Tooltip("what:N", title="of"),
        alt.Tooltip("text:N", title="accuracy"),
        alt.Tooltip("cost:N", title=unit),
        alt.Tooltip("rows:N", title="row"),
    ]

    def base(points: Sequence[Point]) -> Any:
        return alt.Chart(alt.InlineData(values=[*points])).transform_filter(SHOWN)

    line = alt.Chart(alt.InlineData(values=[*front])).mark_line(
        color=theme.MUTED.light, strokeDash=[4, 3], strokeWidth=1.5, aria=False
    )
    per_pixel = (y_domain[1] - y_domain[0]) / HEIGHT
    placed = spread([point["y"] for point in means], LABEL_GAP * per_pixel, *y_domain)
    names = [
        {"label": point["label"], "x": point["x"], "y": at}
        for point, at in zip(means, placed, strict=True)
    ]
    layers = [
        line.encode(x, y),
        base(seeds).mark_point(size=28, opacity=0.5).encode(x, y, colour, tooltip=tooltip),
        base(means).mark_point(size=130).encode(x, y, colour, tooltip=tooltip),
        base(names)
        .mark_text(align="left", dx=10, dy=-2)
        .encode(x, y, colour, text="label:N")
        .properties(name="names"),
    ]
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    return dict(chart.add_params(shown_parameter(labels)).to_dict(validate=False))


def _curves(
    name: str, title: str, where: str, rows: Sequence[Row], fields: Sequence[str], unit: str
) -> Chart | None:
    """The ``fields`` of every epoch, a line for each seed, the best epoch ringed."""
    scale = 100 if "accuracy" in fields[-1] else 1
    points: list[Point] = []
    best: list[Point] = []
    for row in rows:
        for epoch in row.get("history") or ():
            for field in fields:
                value = epoch.get(field)
                if value is None:
                    continue
                point = {
                    "label": mixers_name(row),
                    "x": epoch["epoch"],
                    "y": scale * value,
                    "what": field.replace("val_", "validation ").replace("_", " "),
                    "line": f"{row.get('seed', 0)} {field}",
                    "seed": row.get("seed", 0),
                    "text": number(scale * value),
                    "rows": source(row),
                }
                points.append(point)
                if epoch["epoch"] == row.get("best_epoch") and field == fields[-1]:
                    best.append(point)
    if len({point["x"] for point in points}) < 2:
        return None
    text = f"{where}. A line for each seed; rings mark the best epoch by validation."
    if len(fields) > 1:
        text += " Solid: validation; dashed: training."
    labels = tuple(dict.fromkeys(point["label"] for point in points))
    return Chart(
        f"curves-{name}", f"{title} by epoch", text, _curve_spec(points, best, unit), labels
    )


def _curve_spec(points: Sequence[Point], best: Sequence[Point], unit: str) -> dict[str, Any]:
    alt = altair()
    labels = list(dict.fromkeys(point["label"] for point in points))
    domain, colours = theme.colours(labels)
    ys = [point["y"] for point in points]
    margin = 0.06 * (max(ys) - min(ys)) or 1.0
    y_domain = (min(ys) - margin, max(ys) + margin)
    epochs = sorted({point["x"] for point in points})
    x = alt.X(
        "x:Q",
        title="epoch",
        scale=alt.Scale(domain=[epochs[0], epochs[-1]], nice=False),
        axis=alt.Axis(values=epochs, format="d", grid=False, labelOverlap="greedy"),
    )
    y = alt.Y("y:Q", title=unit, scale=alt.Scale(domain=y_domain, nice=False))
    colour = alt.Color("label:N", scale=alt.Scale(domain=domain, range=colours), legend=None)
    kinds = list(dict.fromkeys(point["what"] for point in points))
    strokes = [[5, 4] if kind.startswith("train") else [1, 0] for kind in kinds]
    dash = alt.StrokeDash("what:N", scale=alt.Scale(domain=kinds, range=strokes), legend=None)
    tooltip = [
        alt.Tooltip("label:N", title="mixers"),
        alt.Tooltip("seed:N"),
        alt.Tooltip("x:Q", title="epoch"),
        alt.Tooltip("what:N", title="of"),
        alt.Tooltip("text:N", title=unit),
        alt.Tooltip("rows:N", title="row"),
    ]

    def base(values: Sequence[Point]) -> Any:
        return alt.Chart(alt.InlineData(values=[*values])).transform_filter(SHOWN)

    last = {
        label: statistics.fmean(
            point["y"]
            for point in points
            if (point["label"], point["what"], point["x"]) == (label, kinds[-1], epochs[-1])
        )
        for label in labels
        if any(
            (point["label"], point["what"], point["x"]) == (label, kinds[-1], epochs[-1])
            for point in points
        )
    }
    per_pixel = (y_domain[1] - y_domain[0]) / HEIGHT
    placed = spread(list(last.values()), LABEL_GAP * per_pixel, *y_domain)
    names = [
        {"label": label, "x": epochs[-1], "y": at} for label, at in zip(last, placed, strict=True)
    ]
    layers = [
        base(points)
        .mark_line(strokeWidth=1.6, opacity=0.85, aria=False)
        .encode(x, y, colour, strokeDash=dash, detail="line:N"),
        base(points).mark_point(size=22).encode(x, y, colour, tooltip=tooltip),
        base(best)
        .mark_point(size=150, filled=False, strokeWidth=2)
        .encode(x, y, colour, tooltip=tooltip),
        base(names)
        .mark_text(align="left", dx=12)
        .encode(x, y, colour, text="label:N")
        .properties(name="names"),
    ]
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    return dict(chart.add_params(shown_parameter(labels)).to_dict(validate=False))

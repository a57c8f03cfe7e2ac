"""Lines over N on two logarithmic axes, labelled where they end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flashmix.bench.store import Row
from flashmix.visualize import theme
from flashmix.visualize.chart import (
    HEIGHT,
    SHOWN,
    WIDTH,
    Chart,
    altair,
    log_domain,
    log_labels,
    log_ticks,
    shown_parameter,
)

Point = dict[str, Any]
NUMBER = ",.4~f"


def source(*rows: Row) -> str:
    """The numbers of the rows behind a mark, for its tooltip."""
    return ", ".join(str(row["line"]) for row in rows if "line" in row)


@dataclass(kw_only=True)
class Lines:
    """What a chart of lines is made of.

    Attributes:
        points: one mark each: ``label``, ``n``, ``y``, ``low`` and ``high`` where there is an
            interval, ``rows`` and whatever else ``tooltip`` names.
        x_title, y_title: of the axes, with units.
        tooltip: field and title of each line of a point's tooltip.
        names: what stands at the end of a line, where that is not its label.
        failed: ``label``, ``n``, ``status``, ``rows`` of cases without a measurement.
        guides: ``label``, ``n``, ``y``: thin lines to compare slopes with.
        levels: values of y to draw a line at, with a name.
        crossings: ``label``, ``n``, ``y``, ``low``, ``high``, ``against``, ``rows``.
        suffix: after the numbers of the y axis.
        y_domain, lengths: bounds of y and the N on the x axis, where not those of the points.
    """

    points: Sequence[Point]
    x_title: str = "N (tokens)"
    y_title: str
    tooltip: dict[str, str]
    names: dict[str, str] = field(default_factory=dict)
    failed: Sequence[Point] = ()
    guides: Sequence[Point] = ()
    levels: dict[float, str] = field(default_factory=dict)
    crossings: Sequence[Point] = ()
    suffix: str = ""
    y_domain: tuple[float, float] | None = None
    lengths: Sequence[int] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The series, in the order of their points."""
        return tuple(dict.fromkeys(point["label"] for point in (*self.points, *self.failed)))

    @property
    def own_lengths(self) -> list[int]:
        """The N of the points, ascending."""
        return sorted({point["n"] for point in (*self.points, *self.failed)})

    @property
    def domain(self) -> tuple[float, float]:
        """The bounds of y."""
        bounds = [
            point[name] for point in self.points for name in ("y", "low", "high") if name in point
        ]
        return self.y_domain or log_domain([*bounds, *self.levels])

    def spec(self) -> dict[str, Any]:
        """The chart in Vega-Lite."""
        alt = altair()
        layers = [*self._guides(), self._lines(), *self._intervals(), *self._levels()]
        layers += [*self._crossings(), self._points(), *self._failed(), *self._names()]
        chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
        return dict(chart.add_params(shown_parameter(self.labels)).to_dict(validate=False))

    def _x(self, name: str = "n") -> Any:
        alt = altair()
        lengths = self.lengths or self.own_lengths
        return alt.X(
            f"{name}:Q",
            title=self.x_title,
            scale=alt.Scale(type="log", domain=log_domain(lengths, 0.018, 0.02), nice=False),
            axis=alt.Axis(values=lengths, format=",", grid=False, labelOverlap="greedy"),
        )

    def _y(self, name: str = "y") -> Any:
        alt = altair()
        ticks = log_ticks(*self.domain)
        return alt.Y(
            f"{name}:Q",
            title=self.y_title,
            scale=alt.Scale(type="log", domain=self.domain, nice=False),
            axis=alt.Axis(
                values=ticks, labelExpr=f"format(datum.value, '{NUMBER}') + '{self.suffix}'"
            ),
        )

    def _colour(self) -> Any:
        alt = altair()
        domain, colours = theme.colours(self.labels)
        return alt.Color("label:N", scale=alt.Scale(domain=domain, range=colours), legend=None)

    def _base(self, points: Sequence[Point], *, every: bool = False) -> Any:
        alt = altair()
        chart = alt.Chart(alt.InlineData(values=[*points]))
        return chart if every else chart.transform_filter(SHOWN)

    def _tooltip(self) -> list[Any]:
        alt = altair()
        return [
            alt.Tooltip(f"{name}:N", title=title)
            for name, title in {**self.tooltip, "rows": "row"}.items()
        ]

    def _lines(self) -> Any:
        alt = altair()
        domain, strokes = theme.dashes(self.labels)
        dash = alt.StrokeDash("label:N", scale=alt.Scale(domain=domain, range=strokes), legend=None)
        return (
            self._base(self.points)
            .mark_line(aria=False)
            .encode(self._x(), self._y(), self._colour(), strokeDash=dash)
        )

    def _points(self) -> Any:
        return (
            self._base(self.points)
            .mark_point()
            .encode(self._x(), self._y(), self._colour(), tooltip=self._tooltip())
        )

    def _intervals(self) -> list[Any]:
        spans = [point for point in self.points if "low" in point]
        if not spans:
            return []
        rule = self._base(spans).mark_rule(strokeWidth=1.5, opacity=0.55, aria=False)
        return [rule.encode(self._x(), self._y("low"), self._colour(), y2="high:Q")]

    def _failed(self) -> list[Any]:
        if not self.failed:
            return []
        alt = altair()
        points = [{**point, "y": self.domain[1]} for point in self.failed]
        cross = self._base(points).mark_point(shape="cross", angle=45, size=70, filled=True)
        tooltip = [
            alt.Tooltip("label:N", title="mixer"),
            alt.Tooltip("n:Q", title="N", format=","),
            alt.Tooltip("status:N"),
            alt.Tooltip("rows:N", title="row"),
        ]
        return [cross.encode(self._x(), self._y(), self._colour(), tooltip=tooltip)]

    def _guides(self) -> list[Any]:
        if not self.guides:
            return []
        alt = altair()
        low, high = self.domain
        inside = [point for point in self.guides if low <= point["y"] <= high]
        ends = list({point["label"]: point for point in inside}.values())
        line = self._base(inside, every=True).mark_line(
            color=theme.LINE.light, strokeWidth=1, strokeDash=[2, 3], aria=False
        )
        name = self._base(ends, every=True).mark_text(
            align="right", dx=-2, dy=-6, color=theme.MUTED.light, fontSize=11, fontStyle="italic"
        )
        return [
            line.encode(self._x(), self._y(), detail="label:N"),
            name.encode(self._x(), self._y(), text=alt.Text("label:N")),
        ]

    def _levels(self) -> list[Any]:
        if not self.levels:
            return []
        values = [{"y": y, "label": name} for y, name in self.levels.items()]
        rule = self._base(values, every=True).mark_rule(
            color=theme.MUTED.light, strokeDash=[4, 3], aria=False
        )
        return [rule.encode(self._y())]

    def _crossings(self) -> list[Any]:
        if not self.crossings:
            return []
        alt = altair()
        tooltip = [
            alt.Tooltip("label:N", title="mixer"),
            alt.Tooltip("sentence:N", title="crossover"),
            alt.Tooltip("rows:N", title="rows"),
        ]
        ring = self._base(self.crossings).mark_point(
            shape="diamond", size=130, filled=False, strokeWidth=2
        )
        found = [ring.encode(self._x(), self._y(), self._colour(), tooltip=tooltip)]
        if wide := [crossing for crossing in self.crossings if "low" in crossing]:
            span = self._base(wide).mark_rule(strokeWidth=5, opacity=0.3, aria=False)
            found.insert(0, span.encode(self._x("low"), self._y(), self._colour(), x2="high:Q"))
        return found

    def _names(self) -> list[Any]:
        """The name of each line, and of each level, where it ends."""
        alt = altair()
        ends = {point["label"]: point["y"] for point in self.points}
        last = max((*self.lengths, *self.own_lengths), default=1)
        every = {**ends, **{name: y for y, name in self.levels.items()}}
        placed = log_labels({name: (last, y) for name, y in every.items()}, self.domain)
        values = [
            {**label, "text": self.names.get(label["label"], label["label"])} for label in placed
        ]
        series = [label for label in values if label["label"] in ends]
        levels = [label for label in values if label["label"] not in ends]
        style = {"align": "left", "dx": 12, "fontSize": 12}
        text = {"x": self._x(), "y": self._y("at"), "text": alt.Text("text:N")}
        names = self._base(series).mark_text(**style).encode(**text, color=self._colour())
        found = [names.properties(name="names")]
        if levels:
            plain = self._base(levels, every=True).mark_text(**style, color=theme.MUTED.light)
            found.append(plain.encode(**text).properties(name="names-of-levels"))
        return found


@dataclass(frozen=True)
class LineChart(Chart):
    """A chart of lines, which can share its axes with those of other runs."""

    lines: Lines | None = None


def align(runs: Sequence[Sequence[Chart]]) -> list[list[Chart]]:
    """The charts of several runs; of one name, those of all runs have their axes in common."""
    found = [list(charts) for charts in runs]
    groups: dict[str, list[tuple[int, int]]] = {}
    for i, charts in enumerate(found):
        for j, chart in enumerate(charts):
            groups.setdefault(chart.name, []).append((i, j))
    for places in groups.values():
        group = [found[i][j] for i, j in places]
        drawings = [chart.lines for chart in group if isinstance(chart, LineChart) and chart.lines]
        if len(places) > 1 and len(drawings) == len(places):
            for (i, j), chart, lines in zip(places, group, _aligned(drawings), strict=True):
                found[i][j] = replace(chart, spec=lines.spec())
    return found


def _aligned(drawings: Sequence[Lines]) -> list[Lines]:
    """The same charts of several runs with axes in common."""
    low = min(lines.domain[0] for lines in drawings)
    high = max(lines.domain[1] for lines in drawings)
    lengths = sorted({n for lines in drawings for n in lines.own_lengths})
    return [replace(lines, y_domain=(low, high), lengths=lengths) for lines in drawings]


def guides(lengths: Sequence[int], start: float, names: Sequence[str]) -> list[Point]:
    """Points of n, n log n and n^2 over ``lengths``, all through ``start`` at the first."""
    first = lengths[0]
    names = [name for name in names if first > 1 or name != "n log n"]  # log 1 is nothing
    growth = {
        "n": lambda n: n / first,
        "n log n": lambda n: n * math.log(n) / (first * math.log(first)),
        "n²": lambda n: (n / first) ** 2,
    }
    steps = [first * (lengths[-1] / first) ** (i / 24) for i in range(25)]
    return [{"label": name, "n": n, "y": start * growth[name](n)} for name in names for n in steps]

"""Suite profile: a bar for each swap and alternative, the parts of its time stacked."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.profiling.parts import PARTS
from flashmix.bench.store import Row
from flashmix.report.analysis import profile
from flashmix.report.analysis.profile import Group
from flashmix.report.charts.lines import Point, source
from flashmix.report.tables import interval, number
from flashmix.visualize import theme
from flashmix.visualize.chart import SHOWN, WIDTH, Chart, altair, shown_parameter

ROW_HEIGHT = 26
NAMES = {"mixing": "mixing", "projections": "projections", "mlp": "MLP", "rest": "rest"}
WHOLE = "not divided"


def profile_charts(rows: Sequence[Row]) -> list[Chart]:
    """A chart for each direction that was profiled."""
    return [_chart(group) for group in profile.compared(rows) if len(group.ok) > 1]


def _chart(group: Group) -> Chart:
    alt = altair()
    points = [point for row in group.ok for point in _points(group, row)]
    order = [row["label"] for row in group.ok]
    parts = [name for name in (*NAMES.values(), WHOLE) if any(p["label"] == name for p in points)]
    domain, colours = theme.colours(parts)
    y = alt.Y("what:N", sort=order, title=None, axis=alt.Axis(labelLimit=240, ticks=False))
    top = max(row["median_ms"] for row in group.ok)
    scale = alt.Scale(domain=[0, 1.25 * top], nice=False)
    axis = alt.Axis(format=",.4~g", tickCount=5)
    bar = (
        alt.Chart(alt.InlineData(values=points))
        .transform_filter(SHOWN)
        .mark_bar(size=14)
        .encode(
            y,
            alt.X("ms:Q", title="time of one call (ms)", stack="zero", axis=axis, scale=scale),
            alt.Color(
                "label:N",
                scale=alt.Scale(domain=domain, range=colours),
                legend=alt.Legend(orient="top", title=None),
            ),
            alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("what:N", title="model"),
                alt.Tooltip("label:N", title="part"),
                alt.Tooltip("text:N", title="time"),
                alt.Tooltip("rows:N", title="row"),
            ],
        )
    )
    ends = [_end(group, row) for row in group.ok]
    value = (
        alt.Chart(alt.InlineData(values=ends))
        .mark_text(align="left", dx=6, color=theme.INK.light)
        .encode(y, alt.X("ms:Q", scale=scale), text="text:N")
    )
    layers = alt.layer(bar, value).properties(width=WIDTH, height=ROW_HEIGHT * len(order))
    spec = dict(layers.add_params(shown_parameter(parts)).to_dict(validate=False))
    text = (
        f"{group.shape}. Medians, and how many times as fast as the vanilla model. Swaps, and free "
        "mixing, which no swap can pass, need training; the others do not."
    )
    name = f"profile-{group.direction.replace('_', '-')}"
    return Chart(
        name, f"{profile.NAMES[group.direction]}: where the time goes", text, spec, (*parts,)
    )


def _points(group: Group, row: Row) -> list[Point]:
    shares = row.get("parts")
    named = {NAMES[part]: shares[part] for part in PARTS} if shares else {WHOLE: 1.0}
    return [
        {
            "label": name,
            "what": row["label"],
            "ms": share * row["median_ms"],
            "rank": rank,
            "text": f"{number(share * row['median_ms'])} ms, {100 * share:.0f} %",
            "rows": source(row),
        }
        for rank, (name, share) in enumerate(named.items())
    ]


def _end(group: Group, row: Row) -> Point:
    value = group.speed(row)
    text = "1x" if value is None else f"{number(value.value)}x"
    return {
        "what": row["label"],
        "ms": row["median_ms"],
        "text": text,
        "interval": interval(value),
        "rows": source(row),
    }

"""Charts of a page: a figure with a button for each series, drawn by the page's script."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.report.charts import Chart
from flashmix.report.page.markup import Markup, tag, words
from flashmix.report.page.runs import PlacedRun
from flashmix.visualize import theme

HEROES = ("accuracy-infer", "speedup-fused-forward", "time-forward")
"""The charts worth the place beside the findings, the first that a run has."""


def hero(charts: Sequence[Chart]) -> Chart | None:
    """The chart that says most of a run at a glance."""
    for name in HEROES:
        for chart in charts:
            if chart.name.startswith(name):
                return chart
    return charts[0] if charts else None


def charts_section(
    runs: Sequence[PlacedRun], drawn: Sequence[Sequence[Chart]], shown: Sequence[Chart | None]
) -> Markup:
    """The charts but those ``shown`` already; of several runs, those of one name side by side."""
    names = dict.fromkeys(
        chart.name for found in drawn for chart in found if not any(chart is one for one in shown)
    )
    parts = []
    for name in names:
        figures = [
            figure(chart, one, index, titled=len(runs) > 1)
            for one, found in zip(runs, drawn, strict=True)
            for index, chart in enumerate(found)
            if chart.name == name
        ]
        parts.append(tag("div", *figures, class_="row") if len(runs) > 1 else figures[0])
    note = tag("noscript", tag("p", "The charts need JavaScript; figures/ holds them as pictures."))
    return tag(
        "section",
        tag("h2", "Charts"),
        note,
        tag("div", *parts, class_="charts several" if len(runs) > 1 else "charts")
        if parts
        else tag("p", "Nothing to draw yet."),
        id="charts",
    )


def figure(chart: Chart, run: PlacedRun, index: int, *, titled: bool) -> Markup:
    """A chart with its series, its caption and a button that saves it."""
    identity = f"chart-{run.number}-{chart.name}"
    chips = [_chip(label) for label in chart.series]
    series = tag("div", *chips, class_="chips", role="group", aria_label=f"Series of {chart.title}")
    return tag(
        "figure",
        tag("h3", chart.title, id=identity),
        tag("p", run.title, class_="of-run") if titled else None,
        series if len(chips) > 1 else None,
        tag("div", class_="plot", data_run=run.number - 1, data_chart=index),
        tag("figcaption", words(chart.text)),
        tag("button", "Save SVG", type="button", data_do="save", data_name=chart.name, hidden=True),
        aria_labelledby=identity,
        class_="chart",
    )


def _chip(label: str) -> Markup:
    tone = theme.tone(label)
    style = f"--light:{tone.light};--dark:{tone.dark}"
    return tag("button", label, type="button", aria_pressed="true", data_series=label, style=style)

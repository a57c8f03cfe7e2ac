"""A page from runs: what was found, then tables, charts, method, rows and environment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashmix.bench.store import Row
from flashmix.report.build import findings, result_sections, statements, summary
from flashmix.report.charts import Chart, align, charts
from flashmix.report.html.document import document, theme_button
from flashmix.report.html.markup import Markup, join, tag, words
from flashmix.report.html.tables import anchors, raw_rows, section_block, sentences
from flashmix.report.load import load
from flashmix.report.sections.about import (
    headline,
    machine_line,
    machine_section,
    method_section,
    place,
)
from flashmix.report.sections.side_by_side import beside_sections
from flashmix.report.tables import Section
from flashmix.visualize import theme


@dataclass(frozen=True)
class PageRun:
    """A run: its folder's name, ``run.json``, its rows and what to call it."""

    name: str
    about: dict[str, Any]
    rows: Sequence[Row]

    @classmethod
    def read(cls, folder: Path, name: str | None = None, root: Path | None = None) -> PageRun:
        """The run in ``folder``; below ``root``, where one is named, no link is followed.

        Raises:
            ArgumentError: the folder holds no run, or one that cannot be read.
        """
        return cls(name or str(folder), *load(folder, root))

    @property
    def title(self) -> str:
        """The suite and the device, without the marks that makers put in a device's name."""
        device = re.sub(r"\((R|TM)\)| Processor\b| CPU\b", "", place(self.about))
        return f"{self.about.get('suite') or self.name} on {' '.join(device.split())}"


@dataclass(frozen=True)
class PlacedRun:
    """A run on a page: rows hold their number as ``line`` and the id of theirs as ``anchor``."""

    number: int
    title: str
    about: dict[str, Any]
    rows: Sequence[Row]


def placed(runs: Sequence[PageRun]) -> list[PlacedRun]:
    """``runs`` with titles that differ, and with a place on the page for each row."""
    titles = [run.title for run in runs]
    found = []
    for number, run in enumerate(runs, 1):
        title = f"{run.title}, {run.name}" if titles.count(run.title) > 1 else run.title
        rows = [
            {**row, "line": line, "anchor": f"r{number}-{line}"}
            for line, row in enumerate(run.rows, 1)
        ]
        found.append(PlacedRun(number, title, run.about, rows))
    if len({run.title for run in found}) < len(found):
        found = [replace(run, title=f"{run.title} ({run.number})") for run in found]
    return found


PARTS = ("Findings", "Tables", "Charts", "Method", "Rows", "Environment")


OPEN_TABLES = 3
"""How many tables of a single run are open at first."""


def page(runs: Sequence[PageRun]) -> str:
    """The page of one run, or of several side by side.

    Raises:
        MissingDependencyError: altair or vl-convert-python is not installed.
    """
    shown = placed(runs)
    drawn = align([charts(run.rows) for run in shown])
    heroes = [hero(found) for found in drawn]
    openings = [
        _opening(run, found, star, titled=len(shown) > 1)
        for run, found, star in zip(shown, drawn, heroes, strict=True)
    ]
    body = [
        tag("div", *openings, class_="runs", id="findings"),
        _tables(shown),
        charts_section(shown, drawn, heroes),
        tag("section", tag("h2", "Method"), *_methods(shown), id="method"),
        tag("section", tag("h2", "Rows"), *map(_rows, shown), id="rows"),
        tag("section", tag("h2", "Environment"), *_environments(shown), id="environment"),
    ]
    title = " and ".join(run.title for run in shown)
    specs = [[chart.spec for chart in found] for found in drawn]
    return document(f"flashmix: {title}", _header(shown), body, specs)


def _header(runs: Sequence[PlacedRun]) -> Markup:
    links = [tag("li", tag("a", name, href=f"#{name.lower()}")) for name in PARTS]
    heading = runs[0].title if len(runs) == 1 else f"{len(runs)} runs side by side"
    top = [tag("p", "flashmix", class_="brand"), tag("h1", heading), theme_button()]
    return join(
        [
            tag("header", *top, class_="top"),
            tag("nav", tag("ul", *links), aria_label="Parts of the report"),
        ]
    )


def _opening(run: PlacedRun, drawn: Sequence[Chart], star: Chart | None, *, titled: bool) -> Markup:
    """What was run and where, its findings, and the chart that shows most of them."""
    lead = headline(run.about, run.rows) if run.rows else "No case has finished yet."
    cards = [
        tag(
            "li",
            tag("span", found.figure, class_="figure"),
            tag("span", found.text),
            _trace(found.rows),
        )
        for found in findings(run.rows)
    ]
    index = next((i for i, chart in enumerate(drawn) if chart is star), 0)
    return tag(
        "section",
        tag("h2", run.title if titled else "Findings"),
        tag("p", lead, class_="lead"),
        tag("p", machine_line(run.about), class_="command"),
        tag("p", tag("code", str(run.about.get("command", ""))), class_="command"),
        tag("ul", *cards, class_="findings") if cards else None,
        tag("div", figure(star, run, index, titled=False), class_="hero") if star else None,
    )


def _trace(rows: Sequence[Row]) -> Markup | None:
    """A link to the rows of a finding."""
    if not rows:
        return None
    words = f"{len(rows)} rows" if len(rows) > 1 else f"row {rows[0]['line']}"
    return tag("a", words, href=f"#{rows[0]['anchor']}", data_rows=anchors(rows), class_="trace")


def _tables(runs: Sequence[PlacedRun]) -> Markup:
    parts: list[Markup] = []
    if len(runs) > 1:
        beside = beside_sections([(run.title, run.rows) for run in runs])
        parts = [
            section_block(section, f"beside-{i}", opened=True)
            for i, section in enumerate(beside, 1)
        ]
    for run in runs:
        if len(runs) > 1:
            parts.append(tag("h3", run.title, class_="of-run"))
        parts += [
            section_block(
                section,
                f"table-{run.number}-{i}",
                opened=len(runs) == 1 and i <= OPEN_TABLES,
            )
            for i, section in enumerate(_run_sections(run), 1)
        ]
    button = tag("button", "Open all", type="button", data_do="open-all", hidden=True)
    bar = tag("div", tag("h2", "Tables"), button, class_="bar")
    return tag("section", bar, *parts, id="tables")


def _run_sections(run: PlacedRun) -> list[Section]:
    """The summary where the results do not begin with it, what the run supports, its tables."""
    if not run.rows:
        return []
    supported = Section("What this run supports", [f"- {text}" for text in statements(run.rows)])
    found = [supported] if supported.text else []
    short = summary(run.about, run.rows)
    if short.title == "Summary" and short.table and short.table.rows:
        found.insert(0, short)
    return [*found, *result_sections(run.about, run.rows)]


def _methods(runs: Sequence[PlacedRun]) -> list[Markup]:
    """How it was measured; said once where all runs say the same."""
    silent = ("The run records nothing about its method; its command is above.",)
    texts = [tuple(method_section(run.about, run.rows).text) or silent for run in runs]
    if len(set(texts)) == 1:
        return sentences(texts[0])
    found: list[Markup] = []
    for run, text in zip(runs, texts, strict=True):
        found += [tag("h3", run.title, class_="of-run"), *sentences(text)]
    return found


def _environments(runs: Sequence[PlacedRun]) -> list[Markup]:
    found = []
    for run in runs:
        section = machine_section(run.about)
        title = run.title if len(runs) > 1 else section.title
        section = Section(title, section.text, section.table)
        found.append(section_block(section, f"environment-{run.number}", opened=True))
    return found


def _rows(run: PlacedRun) -> Markup:
    """Every row of a run, closed until something points there."""
    about = "Every row of results.jsonl, by its number there; that file has all samples of each."
    return tag(
        "details",
        tag("summary", tag("h3", f"{len(run.rows)} rows, {run.title}")),
        tag("p", about),
        raw_rows(run.rows, run.title) if run.rows else None,
        class_="block",
    )


HEROES = ("accuracy-infer", "profile-inference", "speedup-fused-forward", "time-forward")
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
        chart.name
        for found in drawn
        for chart in found
        if not any(chart is other for other in shown)
    )
    parts = []
    for name in names:
        figures = [
            figure(chart, run, index, titled=len(runs) > 1)
            for run, found in zip(runs, drawn, strict=True)
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

"""The page that lists the runs of a folder, to open one or to compare several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from flashmix.errors import FlashmixError
from flashmix.report.page.document import document, theme_button
from flashmix.report.page.markup import Markup, tag
from flashmix.report.page.runs import PageRun


def listing(folder: str, runs: Mapping[str, Path]) -> str:
    """A table of ``runs``, given by name, each with a box to choose it."""
    lines = [_line(name, path) for name, path in runs.items()]
    columns = ("compare", "run", "suite and device", "started (UTC)", "rows", "not ok")
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    table = tag("table", tag("thead", head), tag("tbody", *lines), aria_label="Runs")
    form = tag(
        "form",
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Runs"),
        tag("p", tag("button", "Show the chosen side by side"), class_="tools"),
        action="/runs",
        method="get",
    )
    top = [tag("p", "flashmix", class_="brand"), tag("h1", f"Runs in {folder}"), theme_button()]
    empty = tag("p", "No run in here yet: flashmix bench quick makes one in about three minutes.")
    body = [tag("section", form if lines else empty, class_="listing")]
    return document("flashmix: runs", tag("header", *top, class_="top"), body)


def _line(name: str, path: Path) -> Markup:
    address = "/runs?" + urlencode({"run": name})
    box = tag("input", type="checkbox", name="run", value=name, aria_label=f"Compare {name}")
    try:
        one = PageRun.read(path)
        bad = sum(row.get("status", "ok") != "ok" for row in one.rows)
        facts = [one.title, str(one.run.get("started", ""))[:16], str(len(one.rows)), str(bad)]
    except (FlashmixError, OSError, AttributeError) as error:
        facts = [f"cannot be read: {error}", "", "", ""]
    return tag(
        "tr",
        tag("td", box),
        tag("th", tag("a", name, href=address), scope="row"),
        *(tag("td", fact) for fact in facts),
    )

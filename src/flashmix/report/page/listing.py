"""The page that lists the runs of a folder, to open one or to compare several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from flashmix._text import one_line
from flashmix.report.page.document import document, theme_button
from flashmix.report.page.markup import Markup, tag
from flashmix.report.page.runs import PageRun


@dataclass(frozen=True)
class Line:
    """A run in the list: its name, then what is said of it, or why it cannot be read."""

    name: str
    facts: tuple[str, ...]


def read_line(name: str, path: Path, root: Path) -> Line:
    """The line of the run in ``path``, which lies below ``root``."""
    try:
        one = PageRun.read(path, name, root)
        bad = sum(row["status"] != "ok" for row in one.rows)
        started = str(one.run.get("started") or "")[:16]
        return Line(name, (one.title, started, str(len(one.rows)), str(bad)))
    except Exception as error:  # one run, whatever is in it, never takes the others from the list
        return Line(name, (f"cannot be read: {one_line(str(error))}", "", "", ""))


def listing(folder: str, runs: Sequence[Line]) -> str:
    """A table of ``runs``, each with a box to choose it."""
    lines = [_shown(one) for one in runs]
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


def _shown(one: Line) -> Markup:
    address = "/runs?" + urlencode({"run": one.name})
    label = f"Compare {one.name}"
    box = tag("input", type="checkbox", name="run", value=one.name, aria_label=label)
    return tag(
        "tr",
        tag("td", box),
        tag("th", tag("a", one.name, href=address), scope="row"),
        *(tag("td", fact) for fact in one.facts),
    )

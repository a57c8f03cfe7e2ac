"""Tables of a page: they sort, filter, copy as CSV and name the rows behind each number."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.report.html.markup import Markup, tag, words
from flashmix.report.tables import Cell, Section, Table

FILTERED_FROM = 6
"""Tables with fewer lines than this have no filter."""

LEADING = (
    "line",
    "label",
    "mixers",
    "task",
    "model",
    "subject",
    "op",
    "direction",
    "seq_len",
    "batch",
    "dim",
    "num_heads",
    "dtype",
    "device",
    "seed",
    "status",
    "median_ms",
    "q1_ms",
    "q3_ms",
    "mean_ms",
    "std_ms",
    "peak_mb",
    "params",
)
HIDDEN = ("suite", "history", "properties", "drift", "anchor", "config", "token_lengths", "parts")


def section_block(section: Section, identity: str, *, opened: bool) -> Markup:
    """A section that opens and closes; its heading is the button."""
    return tag(
        "details",
        tag("summary", tag("h3", section.title)),
        *sentences(section.text),
        table_block(section.table, section.title) if section.table else None,
        class_="block",
        id=identity,
        open=opened,
    )


def sentences(lines: Sequence[str]) -> list[Markup]:
    """Paragraphs, or a list where every sentence begins with a dash."""
    if lines and all(line.startswith("- ") for line in lines):
        return [tag("ul", *(tag("li", words(line.removeprefix("- "))) for line in lines))]
    return [tag("p", words(line)) for line in lines]


def table_block(table: Table, title: str) -> Markup:
    """A table with its tools."""
    sourced = any(isinstance(cell, Cell) and cell.rows for line in table.rows for cell in line)
    filtered = len(table.rows) >= FILTERED_FROM and len(table.columns) > 2
    head = tag("tr", *(_head(column) for column in table.columns))
    body = [tag("tr", *(_cell(i, cell) for i, cell in enumerate(line))) for line in table.rows]
    return _with_tools(title, head, body, filtered=filtered, sourced=sourced)


def _with_tools(
    title: str, head: Markup, body: Sequence[Markup], *, filtered: bool, sourced: bool
) -> Markup:
    tools = [
        tag("input", type="search", placeholder="Filter lines", aria_label=f"Filter {title}")
        if filtered
        else None,
        tag("button", "Copy CSV", type="button", data_do="copy"),
        tag("button", "Sources", type="button", data_do="sources", aria_pressed="false")
        if sourced
        else None,
        tag("span", role="status", class_="said"),
    ]
    table = tag("table", tag("thead", head), tag("tbody", *body), aria_label=title)
    return tag(
        "div",
        tag("div", *tools, class_="tools", hidden=True),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=title),
        class_="sortable",
    )


def _head(column: str) -> Markup:
    return tag("th", column, scope="col")


def _cell(index: int, cell: str) -> Markup:
    rows = cell.rows if isinstance(cell, Cell) else ()
    lines = anchors(rows)
    main, bracket, rest = cell.partition(" (")
    shown = [main, tag("span", bracket + rest, class_="aside")] if bracket and rows else [cell]
    if index == 0:
        return tag("th", *shown, scope="row")
    return tag("td", *shown, data_rows=lines or None)


def anchors(rows: Sequence[Row]) -> str:
    """The places on the page of the rows that a number comes from."""
    return " ".join(row["anchor"] for row in rows if "anchor" in row)


def raw_rows(rows: Sequence[Row], title: str) -> Markup:
    """Every row, a line each, which the other tables point to."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    names = [key for key in LEADING if key in keys]
    names += [key for key in keys if key not in names and key not in HIDDEN]
    head = tag("tr", *(_head(_title(name)) for name in names))
    body = [
        tag(
            "tr",
            *(
                tag("th", str(row["line"]), scope="row")
                if name == "line"
                else tag("td", _plain(row.get(name)))
                for name in names
            ),
            id=row["anchor"],
        )
        for row in rows
    ]
    return _with_tools(f"Rows of {title}", head, body, filtered=True, sourced=False)


def _title(name: str) -> str:
    return {"line": "row", "samples_ms": "samples"}.get(name, name)


def _plain(value: object) -> str:
    """A value of a row in a cell: samples by their number, figures with five digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)}"
    return str(value)

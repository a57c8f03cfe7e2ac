"""Sections of a report on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from flashmix.report.tables import Section


def print_section(console: Console, section: Section) -> None:
    """Print a section's table and text; a table wider than the terminal wraps."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if section.table is not None and section.table.rows:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for index, column in enumerate(section.table.columns):
            table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
        for cells in section.table.rows:
            table.add_row(*map(escape, cells))
        console.print(table)
    for sentence in section.text:
        console.print(escape(sentence), highlight=False)

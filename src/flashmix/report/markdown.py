"""A report in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashmix._text import one_line
from flashmix.bench.schema import TRAININGS
from flashmix.bench.store import Row
from flashmix.report.build import sections
from flashmix.report.sections.about import headline
from flashmix.report.tables import Table


def _plain(text: str) -> str:
    """``text`` as one line that holds no HTML: mixers and errors are whatever somebody wrote."""
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;")


def markdown_table(table: Table) -> str:
    """``table`` in Markdown."""

    def line(cells: Sequence[str]) -> str:
        escaped = (_plain(cell).replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
        return "| " + " | ".join(escaped) + " |"

    ruler = "|---|" + "---:|" * (len(table.columns) - 1)
    return "\n".join([line(table.columns), ruler, *(line(row) for row in table.rows)])


def markdown(run: dict[str, Any], rows: Sequence[Row]) -> str:
    """The report in Markdown."""
    suite = run.get("suite", "")
    parts = [_plain(f"# flashmix {suite if suite in TRAININGS else f'bench {suite}'}")]
    if not rows:
        parts.append("No case has finished yet.")
    else:
        parts.append(_plain(headline(run, rows)))
        for section in sections(run, rows):
            parts.append(f"## {section.title}")
            parts += ["\n".join(map(_plain, section.text))] if section.text else []
            parts += [markdown_table(section.table)] if section.table else []
    return "\n\n".join(parts) + "\n"

"""Reports of runs, every number of which traces to a row."""

from flashmix.report.build import (
    markdown,
    markdown_table,
    sections,
    summary,
    summary_section,
    write_report,
)
from flashmix.report.claims import statements

__all__ = [
    "markdown",
    "markdown_table",
    "sections",
    "statements",
    "summary",
    "summary_section",
    "write_report",
]

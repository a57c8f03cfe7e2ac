"""Reports of runs, every number of which traces to a row."""

from flashmix.report.build import sections, statements, summary
from flashmix.report.load import load
from flashmix.report.markdown import markdown, markdown_table
from flashmix.report.sections.summary import summary_section
from flashmix.report.write import write_figures, write_page, write_report

__all__ = [
    "load",
    "markdown",
    "markdown_table",
    "sections",
    "statements",
    "summary",
    "summary_section",
    "write_figures",
    "write_page",
    "write_report",
]

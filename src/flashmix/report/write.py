"""A run's report, written beside its rows."""

from __future__ import annotations

from pathlib import Path

from flashmix.bench import read_rows, read_run
from flashmix.bench.store import write_whole
from flashmix.report.markdown import markdown

REPORT_FILE = "report.md"


def write_report(folder: Path) -> Path:
    """Write report.md of the run in ``folder`` and return its path."""
    path = folder / REPORT_FILE
    write_whole(path, markdown(read_run(folder), read_rows(folder)))
    return path

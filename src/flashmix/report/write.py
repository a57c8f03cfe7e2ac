"""A run's report, written beside its rows: Markdown, a page, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flashmix.bench import read_rows, read_run
from flashmix.bench.store import write_whole
from flashmix.report.markdown import markdown

REPORT_FILE = "report.md"
PAGE_FILE = "report.html"


def write_report(folder: Path) -> Path:
    """Write report.md of the run in ``folder`` and return its path."""
    path = folder / REPORT_FILE
    write_whole(path, markdown(read_run(folder), read_rows(folder)))
    return path


def write_page(folders: Sequence[Path], path: Path | None = None) -> Path:
    """Write the page of one run, or of several side by side, and return its path.

    ``path`` is ``report.html`` in the folder of the only run by default.

    Raises:
        ArgumentError: a folder holds no run.
        MissingDependencyError: altair or vl-convert-python is not installed.
    """
    from flashmix.report.page import PageRun, page

    path = path or folders[0] / PAGE_FILE
    write_whole(path, page([PageRun.read(folder) for folder in folders]))
    return path

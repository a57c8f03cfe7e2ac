"""A run's report, written beside its rows: Markdown, a page, pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flashmix.bench.store import write_whole
from flashmix.report.figures import write_figures
from flashmix.report.load import load
from flashmix.report.markdown import markdown

__all__ = ["write_figures", "write_page", "write_report"]

REPORT_FILE = "report.md"
PAGE_FILE = "report.html"
BESIDE_FILE = "side-by-side.html"


def write_report(folder: Path) -> Path:
    """Write report.md of the run in ``folder`` and return its path."""
    path = folder / REPORT_FILE
    write_whole(path, markdown(*load(folder)))
    return path


def write_page(folders: Sequence[Path], path: Path | None = None) -> Path:
    """Write the page of one run, or of several side by side, and return its path.

    ``path`` is by default ``report.html`` in the folder of the only run, or ``side-by-side.html``
    in the folder that holds all of them.

    Raises:
        ArgumentError: a folder holds no run.
        MissingDependencyError: altair or vl-convert-python is not installed.
    """
    from flashmix.report.page import PageRun, page

    if path is None:
        parent = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
        path = folders[0] / PAGE_FILE if len(folders) == 1 else parent / BESIDE_FILE
    write_whole(path, page([PageRun.read(folder) for folder in folders]))
    return path

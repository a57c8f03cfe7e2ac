"""A run's report, written beside its rows: Markdown, a page, pictures."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from flashmix.bench.store import write_whole
from flashmix.errors import FlashmixError
from flashmix.report.charts import Chart, charts
from flashmix.report.load import load
from flashmix.report.markdown import markdown
from flashmix.visualize import theme
from flashmix.visualize.chart import to_png, to_svg

__all__ = ["write_figures", "write_page", "write_report"]


REPORT_FILE = "report.md"


PAGE_FILE = "report.html"


BESIDE_FILE = "side-by-side.html"


def write_report(folder: Path) -> Path:
    """Write report.md of the run in ``folder`` and return its path.

    Raises:
        FlashmixError: it cannot be written, for example because the disk is full.
    """
    path, content = folder / REPORT_FILE, markdown(*load(folder))
    with _writing(path, [folder]):
        write_whole(path, content)
    return path


@contextlib.contextmanager
def _writing(path: Path, folders: Sequence[Path]) -> Iterator[None]:
    """Turn an OSError of the block into the error that says how to go on."""
    try:
        yield
    except OSError as error:
        command = shlex.join(["flashmix", "report", *map(str, folders)])
        raise FlashmixError(
            f"cannot write {path}: {error.strerror}. The measured rows are kept; once there is "
            f"room: {command}"
        ) from None


def write_page(folders: Sequence[Path], path: Path | None = None) -> Path:
    """Write the page of one run, or of several side by side, and return its path.

    ``path`` is by default ``report.html`` in the folder of the only run, or ``side-by-side.html``
    in the folder that holds all of them.

    Raises:
        ArgumentError: a folder holds no run.
        FlashmixError: it cannot be written, for example because the disk is full.
        MissingDependencyError: altair or vl-convert-python is not installed.
    """
    from flashmix.report.html.page import PageRun, page

    if path is None:
        parent = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
        path = folders[0] / PAGE_FILE if len(folders) == 1 else parent / BESIDE_FILE
    content = page([PageRun.read(folder) for folder in folders])
    with _writing(path, folders):
        write_whole(path, content)
    return path


FIGURES_FOLDER = "figures"


def picture_spec(chart: Chart, mode: theme.Mode) -> dict[str, Any]:
    """The chart as a picture of its own: with its title and configuration, in a mode's colours."""
    where = chart.text.partition(". ")[0].removesuffix(".")
    title = {"text": chart.title, "subtitle": where}
    spec = {**chart.spec, "title": title, "config": theme.config()}
    coloured: dict[str, Any] = theme.in_mode(spec, mode)
    return coloured


def write_figures(folder: Path) -> list[Path]:
    """Write each chart of the run in ``folder`` as SVG, in light and dark, and as PNG, in light.

    They go to ``figures/NAME.svg``, ``NAME-dark.svg`` and ``NAME.png``.

    Raises:
        FlashmixError: one cannot be written, for example because the disk is full.
        MissingDependencyError: altair or vl-convert-python is not installed.
    """
    drawn = charts(load(folder)[1])
    return [path for chart in drawn for path in _write(chart, folder)]


def _write(chart: Chart, run: Path) -> Iterator[Path]:
    folder = run / FIGURES_FOLDER
    with _writing(folder, [run]):
        folder.mkdir(exist_ok=True)
    light, dark = (picture_spec(chart, mode) for mode in get_args(theme.Mode))
    for name, picture in (
        (f"{chart.name}.svg", to_svg(light)),
        (f"{chart.name}-dark.svg", to_svg(dark)),
        (f"{chart.name}.png", to_png(light)),
    ):
        with _writing(folder / name, [run]):
            write_whole(folder / name, picture)
        yield folder / name

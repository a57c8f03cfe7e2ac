"""Charts as pictures, without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from flashmix.bench.store import write_whole
from flashmix.report.charts import Chart, charts
from flashmix.report.load import load
from flashmix.visualize import theme
from flashmix.visualize.chart import to_png, to_svg

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
        MissingDependencyError: altair or vl-convert-python is not installed.
    """
    drawn = charts(load(folder)[1])
    return [path for chart in drawn for path in _write(chart, folder / FIGURES_FOLDER)]


def _write(chart: Chart, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    light, dark = (picture_spec(chart, mode) for mode in get_args(theme.Mode))
    for name, picture in (
        (f"{chart.name}.svg", to_svg(light)),
        (f"{chart.name}-dark.svg", to_svg(dark)),
        (f"{chart.name}.png", to_png(light)),
    ):
        write_whole(folder / name, picture)
        yield folder / name

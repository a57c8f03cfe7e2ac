"""A picture: a chart with a caption that states what was measured."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashmix.report import theme
from flashmix.report.charts import Chart
from flashmix.report.charts.base import WIDTH
from flashmix.report.render import SCALE, to_png, to_svg

PADDING = 14
LABELS = 140
"""Pixels that the direct labels of a run's chart take beside it."""

LETTER = 6.1
"""Mean width of a letter of a caption, in pixels."""

FORMATS = ("svg", "png")


@dataclass(frozen=True, eq=False, repr=False)
class Picture:
    """A chart under its title and caption; notebooks display it.

    Attributes:
        name: for files, "weights" or "layer-2-weights".
        title: one line.
        caption: sentences that state what was measured, on what.
        measured: the figures of the caption by name, unrounded.
        chart: Vega-Lite in light colours, without title and configuration.
        width: of the chart, roughly, in pixels; the caption is wrapped to it.
    """

    name: str
    title: str
    caption: str
    measured: dict[str, float]
    chart: Mapping[str, Any]
    width: int

    @classmethod
    def of(cls, chart: Chart) -> Picture:
        """A chart of a run as a picture."""
        return cls(chart.name, chart.title, chart.text, {}, chart.spec, WIDTH + LABELS)

    def spec(self) -> dict[str, Any]:
        """The whole specification in Vega-Lite, in light colours."""
        caption = self.caption.replace(" %", "\N{NO-BREAK SPACE}%")
        lines = textwrap.wrap(caption, int(self.width / LETTER))
        title = {"text": self.title, "subtitle": lines, "subtitleLineHeight": 16}
        words = {"title": title, "description": f"{self.title}. {self.caption}"}
        return {**self.chart, **words, "padding": PADDING, "config": theme.config()}

    def svg(self, mode: theme.Mode = "light") -> str:
        """The picture as SVG.

        Raises:
            MissingDependencyError: vl-convert-python is not installed.
        """
        return to_svg(self.spec(), mode)

    def png(self, mode: theme.Mode = "light", scale: float = SCALE) -> bytes:
        """The picture as PNG, ``scale`` pixels of it to one of the chart."""
        return to_png(self.spec(), mode, scale)

    def __repr__(self) -> str:
        return f"<Picture {self.name}: {self.title}>"

    def _repr_png_(self) -> bytes:
        return self.png(scale=1.0)

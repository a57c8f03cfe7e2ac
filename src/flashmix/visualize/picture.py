"""A picture: a chart with a caption that states what was measured."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flashmix._files import write_whole
from flashmix.errors import FlashmixError, unknown_choice
from flashmix.visualize import drawing, theme
from flashmix.visualize.chart import SCALE, WIDTH, Chart, to_png, to_svg
from flashmix.visualize.layers import Layer

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


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What captions say of all pictures of a subject.

    Attributes:
        title: the mixer or checkpoint.
        one, all: the first sequence, and all of them, as in "mean over {all}".
        weights: where the parameters come from, a sentence.
        leaving: where what leaves a layer is taken, a sentence; empty where it is its output.
        tone: the mixer in whose colour lines are drawn, where the title is no mixer.
        labels: the tokens of the first sequence as text, or None.
    """

    title: str
    one: str
    all: str
    weights: str
    labels: Sequence[str] | None = None
    leaving: str = ""
    tone: str | None = None


def percent(share: float | Tensor) -> str:
    """A share in three digits; one that is nearly all is not called all."""
    value = 100 * float(share)
    return "over 99.9 %" if 99.95 <= value < 100 else f"{value:.3g} %"


def spread(values: Tensor, form: str = "{:.2f}") -> str:
    """The value, or the lowest and highest over heads."""
    low, high = form.format(float(values.min())), form.format(float(values.max()))
    return low if low == high else f"{low} to {high}"


def picture(
    name: str,
    title: str,
    layer: Layer | None,
    shown: Shown,
    caption: str,
    measured: dict[str, float],
    figure: drawing.Drawing,
    *,
    wide: bool = True,
) -> Picture:
    """A figure under its title and caption, named after its layer; ``wide`` fills the page."""
    where = layer.name if layer else ""
    return Picture(
        name=f"{where.replace(' ', '-')}-{name}" if where else name,
        title=": ".join(
            part for part in (title, ", ".join(filter(None, (where, shown.title)))) if part
        ),
        caption=f"{caption} {shown.weights}".strip(),
        measured=measured,
        chart=figure.spec(),
        width=drawing.WIDTH if wide else drawing.WIDTH // 2 + 20,
    )


CAPTIONS_FILE = "pictures.md"
MEASURED_FILE = "measured.json"


def write_picture(
    picture: Picture, out: Path, formats: Sequence[str] = FORMATS, mode: theme.Mode = "light"
) -> list[Path]:
    """Write one picture into the folder ``out`` as each of ``formats``; returns the paths."""
    for form in formats:
        if form not in FORMATS:
            raise unknown_choice("format", form, FORMATS)
    paths = []
    for form in formats:
        path = out / f"{picture.name}.{form}"
        write_whole(path, picture.svg(mode) if form == "svg" else picture.png(mode))
        paths.append(path)
    return paths


def write_captions(pictures: Iterable[Picture], out: Path, formats: Sequence[str]) -> None:
    """Write every caption (pictures.md) and its figures, unrounded (measured.json)."""
    pictures = list(pictures)
    image = "svg" if "svg" in formats else formats[0]
    sections = [
        f"## {picture.title}\n\n![{picture.title}]({picture.name}.{image})\n\n{picture.caption}\n"
        for picture in pictures
    ]
    write_whole(out / CAPTIONS_FILE, "# Pictures\n\n" + "\n".join(sections))
    measured = {picture.name: {"title": picture.title, **picture.measured} for picture in pictures}
    write_whole(out / MEASURED_FILE, json.dumps(measured, indent=1) + "\n")


def make_folder(out: Path) -> None:
    """Create ``out`` where it is missing.

    Raises:
        FlashmixError: it cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlashmixError(f"cannot write to {out}: {error.strerror}") from None

"""The look of every chart and page: one colour for one mixer everywhere, in light and in dark.

Charts are made in light colours; :func:`in_mode` exchanges each for its dark counterpart, so that
one definition gives both. The colours keep apart for the three common forms of colour blindness
and stand out from their background by at least 3 to 1 (``tests/test_theme.py`` measures both).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from flashmix.mixers.registry import registered_mixers

Mode = Literal["light", "dark"]
FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Tone:
    """A colour on a light and on a dark background, as hex."""

    light: str
    dark: str


PAPER = Tone("#ffffff", "#14171c")
INK = Tone("#1c1e21", "#f3f4f6")
MUTED = Tone("#5f6673", "#a3abb8")
LINE = Tone("#c4c9d2", "#444b57")
GRID = Tone("#e8eaee", "#272c35")


def mixers() -> dict[str, Tone]:
    """The colours that mixers declare, and those of two patterns and of naive attention."""
    declared = {name: kind.colour for name, kind in registered_mixers().items()}
    return {
        **{name: Tone(*colour) for name, colour in declared.items() if colour is not None},
        "attention (naive)": Tone("#6b7280", "#9aa1ac"),
        "fnet,attention": Tone("#3998c3", "#68c8f6"),
        "spectral,attention": Tone("#759b5f", "#aef999"),
    }


COPY = Tone("#868d99", "#7d8593")

_SAME = {
    "copy": "copy",
    "attention (fused)": "attention",
    "sdpa": "attention",
    "naive": "attention (naive)",
    "spectral+local": "hybrid",
    "triton": "fnet",
    "triton_columns": "spectral",
    "cpu": "fnet,attention",
    "dense": "spectral,attention",
    "torch": "local",
    "reference": "attention (naive)",
    "fftn": "topk",
    "fft-fft": "fourier",
    "rfft-filter-irfft": "fourier",
    "rfft-weigh-irfft": "fourier",
    "sdpa-mask": "attention (naive)",
    "flex": "spectral",
    "flex-mask": "spectral,attention",
    "topk-scatter": "topk",
    "local-attention": "fourier",
    "x-transformers": "hybrid",
    "mixing": "fnet",
    "projections": "local",
    "MLP": "spectral",
    "rest": "copy",
    "notdivided": "attention (naive)",
}


def family(label: str) -> str:
    """What gives ``label`` its colour: the mixer, or the layers' mixers, without options."""
    for kind in ("attention (naive)", "attention (fused)"):
        if label.startswith(kind):
            return _SAME.get(kind, kind)
    plain = re.sub(r"\([^)]*\)|\*\d+", "", label)
    plain = re.sub(r", (checkpointed|b?float\d+)", "", plain).replace(" ", "")
    layers = list(dict.fromkeys(plain.split(",")))
    plain = ",".join(layers)
    return _SAME.get(plain, plain)


def tone(label: str) -> Tone:
    """The colour of a mixer or variant; an unknown name gets one of the palette by its letters."""
    name = family(label)
    if name == "copy":
        return COPY
    known = mixers()
    if name in known:
        return known[name]
    spare = [tone for name, tone in known.items() if not name.startswith("attention")]
    return spare[zlib.crc32(name.encode()) % len(spare)]


def dash(label: str) -> list[int]:
    """The strokes of a line: solid, or what tells a variant from its mixer."""
    for mark, strokes in ((", checkpointed", [2, 3]), ("float16", [7, 3]), ("copy", [5, 4])):
        if mark in label:
            return strokes
    return [1, 0]


def colours(labels: Iterable[str]) -> tuple[list[str], list[str]]:
    """(domain, range) of a colour scale over ``labels``."""
    domain = list(dict.fromkeys(labels))
    return domain, [tone(label).light for label in domain]


def dashes(labels: Iterable[str]) -> tuple[list[str], list[list[int]]]:
    """(domain, range) of a dash scale over ``labels``."""
    domain = list(dict.fromkeys(labels))
    return domain, [dash(label) for label in domain]


def config() -> dict[str, Any]:
    """The Vega-Lite configuration of every chart: ``chart.configure(**config())`` in Altair."""
    text = {"font": FONT, "labelFont": FONT, "titleFont": FONT}
    axis = {
        "labelColor": MUTED.light,
        "titleColor": MUTED.light,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "domainColor": LINE.light,
        "tickColor": LINE.light,
        "gridColor": GRID.light,
        "labelPadding": 6,
        "titlePadding": 10,
    }
    return {
        "background": PAPER.light,
        "font": FONT,
        "padding": 8,
        "view": {"stroke": None},
        "title": {
            **text,
            "color": INK.light,
            "subtitleColor": MUTED.light,
            "anchor": "start",
            "fontSize": 15,
            "subtitleFontSize": 12,
            "fontWeight": 600,
            "subtitlePadding": 4,
            "offset": 14,
        },
        "axis": axis,
        "header": {"labelColor": INK.light, "titleColor": MUTED.light, "labelFontSize": 12},
        "legend": {"labelColor": INK.light, "titleColor": MUTED.light, "labelFontSize": 12},
        "text": {"color": INK.light, "fontSize": 12},
        "rule": {"color": LINE.light},
        "line": {"strokeWidth": 2, "strokeJoin": "round", "strokeCap": "round"},
        "point": {"size": 42, "filled": True, "opacity": 1},
        "range": {
            "category": [colour.light for colour in mixers().values()],
            "heatmap": ["#f3f6fb", "#9dbdf3", "#1e68eb", "#14306b"],
            "diverging": ["#c12647", "#f0b9c2", "#f6f6f6", "#b5cdf7", "#1e68eb"],
        },
    }


def counterparts() -> dict[str, str]:
    """Each light colour with its dark counterpart."""
    tones = (PAPER, INK, MUTED, LINE, GRID, COPY, *mixers().values())
    ramps = {
        "#f3f6fb": "#1b2130",
        "#9dbdf3": "#26437f",
        "#14306b": "#dbe8ff",
        "#f0b9c2": "#6b2a35",
        "#f6f6f6": "#23272f",
        "#b5cdf7": "#2b4577",
    }
    return {colour.light: colour.dark for colour in tones} | ramps


def in_mode(spec: Any, mode: Mode) -> Any:
    """A chart's specification in the colours of ``mode``; ``spec`` itself is left as it is."""
    if mode == "light":
        return spec
    return _exchanged(spec, counterparts())


def _exchanged(value: Any, by: dict[str, str]) -> Any:
    if isinstance(value, str):
        return by.get(value, value)
    if isinstance(value, dict):
        return {key: _exchanged(item, by) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_exchanged(item, by) for item in value]
    return value

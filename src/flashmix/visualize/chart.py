"""What the charts share: their shape, axes that fit the data, labels that do not overlap."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashmix.errors import missing_extra
from flashmix.visualize import theme

if TYPE_CHECKING:
    import altair as alt

WIDTH, HEIGHT = 560, 340
LABEL_GAP = 15
"""Pixels between two direct labels."""


@dataclass(frozen=True)
class Chart:
    """A picture of rows.

    Attributes:
        name: of its files, for example "time-forward".
        title: what it shows, with the unit.
        text: what a reader must know to read it.
        spec: Vega-Lite in light colours, without configuration; its parameter ``shown`` holds the
            series that are drawn, where there are several.
        series: the labels in it, in the order of the rows.
    """

    name: str
    title: str
    text: str
    spec: Mapping[str, Any]
    series: tuple[str, ...] = ()


def altair() -> Any:
    """The altair package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import altair
    except ImportError:
        raise missing_extra("altair", "report", "drawing charts") from None
    return altair


def log_domain(
    values: Iterable[float], margin: float = 0.06, least: float = 0.1
) -> tuple[float, float]:
    """Bounds around positive values with a margin: a share of their logarithmic span, or more."""
    found = [math.log(value) for value in values if value > 0]
    low, high = min(found, default=0.0), max(found, default=1.0)
    extra = max(margin * (high - low), least)
    return math.exp(low - extra), math.exp(high + extra)


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two bounds, with 2 and 5 where there would be fewer than four."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [step * 10.0**decade for decade in decades for step in steps]
        found = [float(f"{value:.6g}") for value in found if low <= value <= high]
        if len(found) >= 4:
            break
    return found


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the ``wanted`` ones, in their order, at least ``gap`` apart, within bounds."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    groups: list[list[float]] = []  # [centre, members]
    for index in order:
        groups.append([wanted[index], 1])
        while len(groups) > 1:
            (a, m), (b, n) = groups[-2:]
            if b - a >= gap * (m + n) / 2:
                break
            groups[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    found: list[float] = []
    for centre, members in groups:
        half = gap * (members - 1) / 2
        start = min(max(centre - half, low), high - 2 * half)
        found += [start + gap * i for i in range(int(members))]
    for i in range(len(found) - 2, -1, -1):
        found[i] = min(found[i], found[i + 1] - gap)
    return [found[order.index(i)] for i in range(len(wanted))]


def log_labels(
    ends: Mapping[str, tuple[float, float]], domain: tuple[float, float], height: int = HEIGHT
) -> list[dict[str, Any]]:
    """A direct label for each series at its last (x, y), moved apart on a log axis."""
    low, high = (math.log(bound) for bound in domain)
    per_pixel = (high - low) / height
    wanted = [math.log(y) for _, y in ends.values()]
    placed = spread(wanted, LABEL_GAP * per_pixel, low + 5 * per_pixel, high - 5 * per_pixel)
    return [
        {"label": label, "n": x, "at": math.exp(y)}
        for (label, (x, _)), y in zip(ends.items(), placed, strict=True)
    ]


def shown_parameter(labels: Sequence[str]) -> alt.Parameter:
    """The parameter by which a page hides and shows series."""
    parameter: alt.Parameter = altair().param(name="shown", value=list(labels))
    return parameter


SHOWN = "indexof(shown, datum.label) >= 0"


SCALE = 2.0
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def to_svg(spec: Mapping[str, Any], mode: theme.Mode = "light") -> str:
    """A Vega-Lite specification in light colours, drawn in those of ``mode``.

    Raises:
        MissingDependencyError: vl-convert-python is not installed.
    """
    drawn: str = _renderer().vegalite_to_svg(theme.in_mode(spec, mode))
    return drawn


def to_png(spec: Mapping[str, Any], mode: theme.Mode = "light", scale: float = SCALE) -> bytes:
    """As :func:`to_svg`, with ``scale`` pixels of PNG to one of the chart."""
    return compact_png(_renderer().vegalite_to_png(theme.in_mode(spec, mode), scale=scale))


def compact_png(image: bytes) -> bytes:
    """The same pixels in fewer bytes: the renderer compresses for speed, to four times the size."""
    chunks, at = [], len(_SIGNATURE)
    while at < len(image):
        (length,) = struct.unpack_from(">I", image, at)
        chunks.append((image[at + 4 : at + 8], image[at + 8 : at + 8 + length]))
        at += length + 12
    pixels = zlib.compress(zlib.decompress(b"".join(d for kind, d in chunks if kind == b"IDAT")), 9)
    first = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    rest = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*rest[:first], (b"IDAT", pixels), *rest[first:]]
    )


def _renderer() -> Any:
    try:
        import vl_convert
    except ImportError:
        raise missing_extra("vl-convert-python", "report", "drawing pictures") from None
    return vl_convert

"""Charts of matrices and spectra, from plain numbers.

Shapes: P panels, R rows, C columns, S series, F frequencies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flashmix.visualize import theme
from flashmix.visualize.chart import altair, log_domain, log_labels, log_ticks

MOST_CELLS = 16_384
"""Cells of a picture, over all panels; larger matrices are averaged over blocks."""

MOST_PANELS = 16
MOST_LABELS = 40

WIDTH = 880
"""Width in pixels that several panels share; a single one takes half."""

SPECTRUM_HEIGHT = 240
FAINTEST = 1e-4
"""Magnitudes below this share of the largest, where a filter drops a frequency, are not drawn."""

_GAP = 24

Scale = Literal["sequential", "signed", "ratio", "cyclic"]
SCALES: dict[Scale, dict[str, Any]] = {
    "sequential": {"type": "sqrt", "range": theme.config()["range"]["heatmap"]},
    "signed": {"type": "sqrt", "range": theme.config()["range"]["diverging"]},
    "ratio": {"range": theme.config()["range"]["diverging"]},
    "cyclic": {"range": [theme.INK.light, "#1e68eb", "#f6f6f6", "#c12647", theme.INK.light]},
}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A chart and its data, kept apart because Altair takes seconds to check thousands of records.

    Attributes:
        chart: refers to its data by name.
        data: records by that name.
    """

    chart: Any
    data: dict[str, list[dict[str, Any]]]

    def spec(self) -> dict[str, Any]:
        """Both as Vega-Lite, without configuration."""
        whole: dict[str, Any] = self.chart.to_dict()
        whole.pop("config", None)
        return whole | {"datasets": self.data}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A side of a heatmap: cell i lies from ``start + i * step`` to ``start + (i + 1) * step``.

    Attributes:
        title: what is counted along it, with its unit.
        start, step: where the first cell begins and how wide a cell is.
        labels: a name for each cell, shown where they are few.
        downwards: whether numbers grow from top to bottom, as a matrix's rows do.
    """

    title: str
    start: float = 0.0
    step: float = 1.0
    labels: Sequence[str] | None = None
    downwards: bool = False

    def edge(self, cell: int) -> float:
        """Where a cell begins, rounded as far as a pixel shows."""
        return round(self.start + cell * self.step, 6)


INPUT_TOKEN = Axis(title="input token")
OUTPUT_TOKEN = Axis(title="output token", downwards=True)


def frequency_axis(seq_len: int) -> Axis:
    """Frequencies k / N, in cycles per token, each in the middle of its cell."""
    return Axis(title="frequency (cycles per token)", start=-0.5 / seq_len, step=1 / seq_len)


def block_size(cells: int, panels: int) -> int:
    """How many of ``cells`` rows or columns one cell of a heatmap shows."""
    return -(-cells // math.isqrt(MOST_CELLS // panels))


def averaged(rows: int, columns: int, panels: int) -> str:
    """The sentence of a caption that says so where cells are means; else nothing."""
    high, wide = block_size(rows, panels), block_size(columns, panels)
    return f" A cell is the mean of {high} x {wide} entries." if high > 1 or wide > 1 else ""


def block_means(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Means over ``rows`` x ``columns`` blocks of [..., R, C]; the last may be smaller."""
    return _pool(matrix.shape[-2], rows) @ matrix.double() @ _pool(matrix.shape[-1], columns).T


def _pool(n: int, block: int) -> Tensor:
    cell = torch.arange(n) // block
    pool = torch.zeros(int(cell[-1]) + 1, n, dtype=torch.float64)
    pool[cell, torch.arange(n)] = 1
    return pool / pool.sum(1, keepdim=True)


def panel_columns(panels: int) -> int:
    """Panels side by side."""
    return panels if panels <= 3 else 2 if panels == 4 else 3 if panels <= 6 else 4


def heatmaps(
    matrices: Tensor,
    names: Sequence[str],
    *,
    what: str,
    rows: Axis = OUTPUT_TOKEN,
    columns: Axis = INPUT_TOKEN,
    scale: Scale | None = None,
    top: float | None = None,
    width: int | None = None,
    height: int | None = None,
    data_name: str = "cells",
) -> Drawing:
    """A heatmap for each panel of ``matrices`` [P, R, C], on one colour scale.

    Args:
        names: a heading for each panel.
        what: title of the colour scale, with its unit.
        rows, columns: the axes.
        scale: "sequential" from 0 (by the square root, so that small numbers are seen),
            "signed" the same to both sides of 0, "ratio" evenly to both sides of 0, "cyclic" for
            angles; by the numbers' signs when None.
        top: end of the colour scale, which larger numbers share; the largest absolute one when
            None.
        width: of a panel, in pixels; a share of the page when None.
        height: of a panel; a square's when None.
        data_name: keeps the data of charts apart that are drawn together.
    """
    alt = altair()
    panels, r, c = matrices.shape
    block_r, block_c = block_size(r, panels), block_size(c, panels)
    cells = block_means(matrices.cpu(), block_r, block_c)
    side_by_side = panel_columns(panels)
    width = width or (WIDTH // 2 if panels == 1 else WIDTH // max(2, side_by_side) - _GAP)
    # Cells end at whole pixels, or their edges would show as seams.
    wide = max(2, width // cells.shape[2])
    high = wide if height is None else max(2, height // cells.shape[1])
    scale = scale or ("signed" if bool((cells < 0).any()) else "sequential")
    top = top or float(cells.abs().max()) or 1.0
    domain = [0, top] if scale == "sequential" else [-top, top]
    colours = SCALES[scale]
    empty = colours["range"][0 if scale == "sequential" else 2]
    records = _records(cells, names, rows, columns, (block_r, block_c), (r, c))
    chart = (
        alt.Chart(alt.NamedData(data_name))
        .mark_rect(aria=False)
        .encode(
            x=alt.X("x:Q", **_position(alt, columns, c, block_c)),
            x2="x2:Q",
            y=alt.Y("y:Q", **_position(alt, rows, r, block_r)),
            y2="y2:Q",
            color=alt.Color(
                "value:Q",
                scale=alt.Scale(domain=domain, clamp=True, **colours),
                legend=alt.Legend(
                    title=what,
                    orient="bottom",
                    gradientLength=220,
                    titleLimit=WIDTH // 2,
                    format="~g",
                    tickCount=5,
                ),
            ),
            tooltip=[
                alt.Tooltip("y:Q", title=rows.title, format="~g"),
                alt.Tooltip("x:Q", title=columns.title, format="~g"),
                alt.Tooltip("value:Q", title=what, format=".3g"),
            ],
        )
        .properties(
            width=round(wide * c / block_c),
            height=round(high * r / block_r),
            view=alt.ViewBackground(fill=empty),
        )
    )
    if panels > 1:
        header = alt.Header(labelPadding=4)
        facet = alt.Facet("panel:N", sort=list(names), title=None, header=header)
        chart = chart.facet(facet=facet, columns=side_by_side)
    return Drawing(chart, {data_name: records})


def _records(
    cells: Tensor,
    names: Sequence[str],
    rows: Axis,
    columns: Axis,
    block: tuple[int, int],
    size: tuple[int, int],
) -> list[dict[str, Any]]:
    """A record for each cell that is not zero; zero is the panel's own colour."""
    (high, wide), (r, c) = block, size
    return [
        {
            "panel": names[panel],
            "x": columns.edge(j * wide),
            "x2": columns.edge(min(c, (j + 1) * wide)),
            "y": rows.edge(i * high),
            "y2": rows.edge(min(r, (i + 1) * high)),
            "value": float(f"{cells[panel, i, j]:.4g}"),
        }
        for panel, i, j in cells.nonzero().tolist()
    ]


def _position(alt: Any, side: Axis, cells: int, block: int) -> dict[str, Any]:
    """Scale and axis of one side; with labels each cell is named at its middle."""
    axis: dict[str, Any] = {"title": side.title, "grid": False, "domain": False}
    if side.labels is None or cells > MOST_LABELS or block > 1:
        axis |= {"tickCount": 5, "format": "~r"}
    else:
        index = f"floor((datum.value - {side.start}) / {side.step})"
        axis |= {
            "values": [(side.edge(i) + side.edge(i + 1)) / 2 for i in range(cells)],
            "labelExpr": f"{json.dumps(list(side.labels))}[{index}]",
            "labelAngle": 0 if side.downwards else -90,
            "labelOverlap": False,
            "labelFontSize": 11,
            "ticks": False,
        }
    domain = [side.edge(0), side.edge(cells)]
    scale = alt.Scale(domain=domain[::-1] if side.downwards else domain, nice=False, zero=False)
    return {"scale": scale, "axis": alt.Axis(**axis)}


def spectra(
    magnitudes: Tensor,
    seq_len: int,
    panels: Sequence[str],
    series: Sequence[str],
    tones: Sequence[theme.Tone],
) -> Drawing:
    """Lines of magnitude over frequency, log scale: ``magnitudes`` [P, S, F], labelled directly.

    Args:
        magnitudes: positive; those below FAINTEST of the largest end the line.
        seq_len: tokens N that were transformed, F = N // 2 + 1.
        panels: a heading for each panel.
        series: a name for each line.
        tones: a colour for each line.
    """
    alt = altair()
    least = FAINTEST * float(magnitudes.max())
    records: list[dict[str, Any]] = [
        {
            "panel": panel,
            "label": name,
            "frequency": round(k / seq_len, 6),
            "magnitude": float(f"{value:.4g}"),
        }
        for panel, lines in zip(panels, magnitudes.tolist(), strict=True)
        for name, line in zip(series, lines, strict=True)
        for k, value in enumerate(line)
        if value >= least
    ]
    low, high = domain = log_domain(record["magnitude"] for record in records)
    ends: dict[str, dict[str, tuple[float, float]]] = {}
    for record in records:
        ends.setdefault(record["panel"], {})[record["label"]] = (0.5, record["magnitude"])
    names = [
        {"panel": panel, **label}
        for panel, at in ends.items()
        for label in log_labels(at, domain, SPECTRUM_HEIGHT)
    ]
    side_by_side = panel_columns(len(panels))
    width = WIDTH // (1 if len(panels) == 1 else max(2, side_by_side)) - 5 * _GAP
    colour = alt.Color(
        "label:N",
        scale=alt.Scale(domain=list(series), range=[tone.light for tone in tones]),
        legend=None,
    )
    x = alt.X(
        "frequency:Q",
        title="frequency (cycles per token)",
        scale=alt.Scale(domain=[0, 0.5]),
        axis=alt.Axis(values=[0, 0.1, 0.2, 0.3, 0.4, 0.5], grid=False, format="~r"),
    )
    y = alt.Y(
        "magnitude:Q",
        title="FFT magnitude (rms)",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=log_ticks(low, high), format="~r"),
    )
    tooltip = ["label:N", alt.Tooltip("frequency:Q", format=".3f"), "magnitude:Q"]
    lines = alt.Chart().mark_line().encode(x=x, y=y, color=colour, tooltip=tooltip)
    texts = (
        alt.Chart()
        .mark_text(align="left", dx=8)
        .encode(x="n:Q", y="at:Q", color=colour, text="label:N")
    )
    chart = alt.layer(lines, texts, data=alt.NamedData("lines"))
    chart = chart.properties(width=width, height=SPECTRUM_HEIGHT)
    if len(panels) > 1:
        facet = alt.Facet("panel:N", sort=list(panels), title=None)
        chart = chart.facet(facet=facet, columns=side_by_side)
    return Drawing(chart, {"lines": [*records, *names]})

"""What captions are made of: the subject, numbers as text, and the picture under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flashmix.report.pictures import drawing
from flashmix.report.pictures.layers import Layer
from flashmix.report.pictures.picture import Picture


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
            one for one in (title, ", ".join(filter(None, (where, shown.title)))) if one
        ),
        caption=f"{caption} {shown.weights}".strip(),
        measured=measured,
        chart=figure.spec(),
        width=drawing.WIDTH if wide else drawing.WIDTH // 2 + 20,
    )

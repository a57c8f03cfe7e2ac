"""What a mixer's class declares beside its formula, for pictures and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Picture = Literal["weights", "gains", "filter", "impulse"]
"""What ``flashmix.visualize`` draws of a mixer, beside what it draws of any.

"weights": the matrix of each head, which ``return_weights=True`` gives. "gains": each head's
weights of frequencies. "filter": the learned one that ``filter()`` gives. "impulse": responses to
impulses, of a fixed linear map.
"""


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """The mixer as text, options included, for each suite that measures it unasked.

    Attributes:
        quick: for the suite ``quick``; so for ``swap``, ``efficient`` and ``parallel``.
        digits: for the training on digits in ``quick``.
        longest_sharded: by device, "cpu" and "cuda", the most tokens in ``parallel``, as pairs.
    """

    quick: str | None = None
    digits: str | None = None
    swap: str | None = None
    efficient: str | None = None
    parallel: str | None = None
    longest_sharded: tuple[tuple[str, int], ...] = ()

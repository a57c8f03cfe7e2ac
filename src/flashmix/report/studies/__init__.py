"""The sections of the suites that follow published studies, with those studies' columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flashmix.bench.store import Row
from flashmix.report import ranks
from flashmix.report.studies import fourier, kernels, naive, spectral, swap
from flashmix.report.tables import Section

STUDIES: dict[str, Callable[[Sequence[Row]], list[Section]]] = {
    "fourier": fourier.sections,
    "naive": naive.sections,
    "spectral": spectral.sections,
    "swap": swap.sections,
    "kernels": kernels.sections,
    "parallel": ranks.sections,
}
"""By suite, what makes the sections of its report from its rows."""

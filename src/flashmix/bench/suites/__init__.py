"""The suites, as data: each is a function that lists its cases for a :class:`Grid`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from flashmix.bench.case import Suite
from flashmix.bench.suites.efficient import efficient
from flashmix.bench.suites.fourier import fourier
from flashmix.bench.suites.grid import Grid
from flashmix.bench.suites.kernels import check_op, kernels
from flashmix.bench.suites.model import model
from flashmix.bench.suites.naive import naive
from flashmix.bench.suites.parallel import parallel
from flashmix.bench.suites.profile import profile
from flashmix.bench.suites.quick import quick
from flashmix.bench.suites.spectral import spectral
from flashmix.bench.suites.swap import swap
from flashmix.errors import ArgumentError, unknown_choice
from flashmix.mixers import parse_mixer
from flashmix.mixers.spec import parse_layers

__all__ = ["SUITES", "Grid", "build_suite"]

SUITES: dict[str, Callable[[Grid], Suite]] = {
    "quick": quick,
    "fourier": fourier,
    "naive": naive,
    "spectral": spectral,
    "efficient": efficient,
    "swap": swap,
    "kernels": kernels,
    "parallel": parallel,
    "model": model,
    "profile": profile,
}


def build_suite(name: str, grid: Grid) -> Suite:
    """The suite ``name`` for ``grid``.

    Raises:
        ArgumentError: an unknown suite or mixer, or a grid that leaves no case.
    """
    if name not in SUITES:
        raise unknown_choice("suite", name, SUITES)
    for text in grid.mixers or ():
        if name == "kernels":
            check_op(text)
        elif name in ("model", "profile"):
            parse_layers(text)
        else:
            parse_mixer(text).build(64)
    suite = SUITES[name](grid)
    if not suite.cases:
        raise ArgumentError(f"suite {name!r}: no case is left of {dataclasses.asdict(grid)}")
    return dataclasses.replace(suite, cases=tuple(dict.fromkeys(suite.cases)))

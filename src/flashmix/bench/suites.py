"""The suites, as data: each function lists a suite's cases for a :class:`Grid`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flashmix.bench.case import COPY, Case, Direction, Suite
from flashmix.errors import ArgumentError, unknown_choice
from flashmix.mixers import parse_mixer


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What the command line can change of a suite; None leaves the suite's own choice."""

    device: str = "cpu"
    dtype: str | None = None
    batch: int | None = None
    seq_lens: tuple[int, ...] | None = None
    dim: int | None = None
    num_heads: int | None = None
    mixers: tuple[str, ...] | None = None
    directions: tuple[Direction, ...] | None = None
    seed: int = 0

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Grid:
        """The grid that run.json holds."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return cls(**values)


BASELINES = (("attention", "naive"), ("attention", "sdpa"))
"""The naive attention of the literature, and the fused one that people run."""

QUICK_MIXERS = ("local", "topk", "fnet", "spectral", "fourier", "spectral+local")
DIGITS_MIXERS = (
    "attention",
    "local(window=16)",
    "topk(topk=8)",
    "fnet",
    "spectral",
    "fourier",
    "spectral+local(window=16)",
)
DIGITS_SECONDS = 5.0


def quick(grid: Grid) -> Suite:
    """All mixers at N 128 to 2,048, then trained on handwritten digits."""
    directions = grid.directions or ("forward", "forward_backward", "train")
    mixers = [(text, "auto") for text in grid.mixers or QUICK_MIXERS]
    common: dict[str, Any] = {
        "suite": "quick",
        "dtype": grid.dtype or ("float32" if grid.device == "cpu" else "bfloat16"),
        "device": grid.device,
    }
    sweep = [
        Case(
            **common,
            mixer=mixer,
            impl=impl,
            direction=direction,
            batch=grid.batch or (2 if grid.device == "cpu" else 16),
            seq_len=seq_len,
            dim=grid.dim or 256,
            num_heads=grid.num_heads or 4,
            seed=grid.seed,
        )
        for direction in directions
        if direction != "train"
        for seq_len in grid.seq_lens or (128, 256, 512, 1024, 2048)
        for mixer, impl in [(COPY, "torch"), *BASELINES, *mixers]
    ]
    digits = [
        Case(
            **{**common, "dtype": "float32"},
            mixer=mixer,
            direction="train",
            batch=32,
            seq_len=64,
            dim=64,
            num_heads=4,
            seed=seed,
            seconds=DIGITS_SECONDS,
        )
        for mixer in (("attention", *grid.mixers) if grid.mixers else DIGITS_MIXERS)
        for seed in (grid.seed, grid.seed + 1)
        if "train" in directions
    ]
    return Suite(name="quick", about="all mixers in about three minutes", cases=(*sweep, *digits))


SUITES: dict[str, Callable[[Grid], Suite]] = {"quick": quick}


def build_suite(name: str, grid: Grid) -> Suite:
    """The suite ``name`` for ``grid``.

    Raises:
        ArgumentError: an unknown suite or mixer, or a grid that leaves no case.
    """
    if name not in SUITES:
        raise unknown_choice("suite", name, SUITES)
    for text in grid.mixers or ():
        parse_mixer(text).build(64)
    suite = SUITES[name](grid)
    if not suite.cases:
        raise ArgumentError(f"suite {name!r}: no case is left of {dataclasses.asdict(grid)}")
    return suite

"""What the command line can change of a suite, and the parts that suites share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flashmix.bench.case import COPY, BenchmarkCase, Direction, Lengths, Mode
from flashmix.mixers.registry import registered_mixers

BASELINES = (("attention", "naive"), ("attention", "sdpa"))
"""The naive attention of the literature, and the fused one that people run."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What the command line can change of a suite; None leaves the suite's own choice.

    The fields behind ``seed`` are those of suite ``profile``: the model's config as text, the
    length of a batch or the lengths of its sequences with what is to be said of them, whether
    training steps are timed, and what an hour of the machine costs.
    """

    device: str = "cpu"
    dtype: str | None = None
    batch: int | None = None
    seq_lens: tuple[int, ...] | None = None
    dims: tuple[int, ...] | None = None
    num_heads: int | None = None
    mixers: tuple[str, ...] | None = None
    directions: tuple[Direction, ...] | None = None
    passes: int | None = None
    remedies: bool = False
    baselines: bool = True
    ranks: int | None = None
    lengths: tuple[Lengths, ...] | None = None
    models: tuple[str, ...] | None = None
    modes: tuple[Mode, ...] | None = None
    seed: int = 0
    config: str | None = None
    seq_len: int | None = None
    token_lengths: tuple[int, ...] | None = None
    about_data: str | None = None
    train: bool = False
    price_per_hour: float | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"

    def wants(self, direction: Direction) -> bool:
        """Whether a direction is left in."""
        return self.directions is None or direction in self.directions

    def wants_lengths(self, lengths: Lengths) -> bool:
        """Whether full, or padded, batches are left in."""
        return self.lengths is None or lengths in self.lengths

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Grid:
        """The grid that run.json holds."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return cls(**values)


def declared(suite: str) -> tuple[str, ...]:
    """The mixers that declare themselves for ``suite``, a field of :class:`Benchmarks`."""
    texts = (getattr(kind.benchmarks, suite) for kind in registered_mixers().values())
    return tuple(text for text in texts if text is not None)


def with_copy(case: BenchmarkCase, mixers: Sequence[tuple[str, str]]) -> list[BenchmarkCase]:
    """``case`` for each (mixer, impl), after a copy of the same shape."""
    baselines = [(COPY, "torch"), *mixers]
    return [dataclasses.replace(case, mixer=mixer, impl=impl) for mixer, impl in baselines]

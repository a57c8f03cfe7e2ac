"""Launch parameters of kernels: what fits, or what was measured to be the fastest near the sizes.

``tuned.json`` beside this file holds, per op, the parameters that were fastest at a few shapes on
the GPU it names. A shape takes those of the nearest one in the logarithm of its sizes, so nothing
is compiled or timed at run time but the kernel that runs.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch

TABLE = Path(__file__).with_name("tuned.json")
FACTORS = ("n1", "na", "nb")
"""Sizes that say how a length is factored; parameters apply to the factors that they are for."""


class LaunchConfig:
    """Launch parameters of kernels; a subclass is a dataclass of them, with a default for each.

    Attributes:
        op: its name in the table; "" where nothing was tuned.
        section: where its parameters are in those of the op; all of them with "".
        sizes: what the table is looked up by.
    """

    op: ClassVar[str] = ""
    section: ClassVar[str] = ""
    sizes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """What fits into a GPU's registers and shared memory, where nothing was tuned."""
        return cls()

    @classmethod
    def tunable(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> bool:
        """Whether tuned parameters fit, which were found in bfloat16."""
        return dtype != torch.float32


Config = TypeVar("Config", bound=LaunchConfig)


def launch_config(kind: type[Config], sizes: Mapping[str, int], dtype: torch.dtype) -> Config:
    """The launch parameters of an op's kernels.

    Args:
        kind: which ones.
        sizes: those that ``kind`` depends on.
        dtype: of the tensors.
    """
    key: Any = kind
    found: Config = _resolve(key, tuple(sizes.items()), dtype)
    return found


@functools.cache
def _resolve(kind: Any, sizes: tuple[tuple[str, int], ...], dtype: torch.dtype) -> Any:
    given = dict(sizes)
    if kind.op and kind.tunable(given, dtype):
        tuned = nearest(kind.op, {name: given[name] for name in kind.sizes})
        if tuned is not None and _factors(tuned) in (None, _factors(given)):
            tuned = tuned[kind.section] if kind.section else tuned
            names = kind.__dataclass_fields__
            return kind(**{name: value for name, value in tuned.items() if name in names})
    return kind.fitting(given, dtype)


def _factors(values: Mapping[str, Any]) -> list[int] | None:
    """How a length is factored, where ``values`` say it."""
    if "digits" in values:
        return list(values["digits"])
    return [values[name] for name in FACTORS if name in values] or None


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    return table


def nearest(op: str, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """The parameters tuned at the shape nearest to ``sizes``, or None where ``op`` has none."""

    def distance(entry: dict[str, Any]) -> float:
        return sum(abs(math.log(size / entry["sizes"][name])) for name, size in sizes.items())

    entries = _table().get(op, [])
    parameters: dict[str, Any] | None
    parameters = min(entries, key=distance)["parameters"] if entries else None
    return parameters

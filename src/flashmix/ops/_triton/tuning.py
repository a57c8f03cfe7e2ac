"""Launch parameters found by measurement.

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
from typing import Any

TABLE = Path(__file__).with_name("tuned.json")


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

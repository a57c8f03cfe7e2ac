"""What a run measures twice, and what the two measurements say of its intervals.

The samples of a case come from one process within a second or two. Measured again later, its median
lies further off than those samples let one think. So a run ends by measuring some groups of its
cases again, in a fresh process, and every interval takes the drift that shows.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashmix.bench import stats
from flashmix.bench.case import BenchmarkCase
from flashmix.bench.store import REPEATS_FILE, Row, read_rows

SHARE, MOST = 0.25, 10
"""A quarter of the groups is repeated, at most ten."""
SECONDS_MOST = 10.0
"""Groups whose samples took longer are not repeated."""
SLOW_TO_PREPARE = ("compile", "reduce-overhead", "onnx", "onnx-int8", "openvino")
"""Modes of suite ``profile`` that take far longer to prepare than to time: not repeated."""


def key(fields: Row) -> str:
    """A case's identity, from its own fields or those of its row."""
    return json.dumps(BenchmarkCase.from_dict(fields).as_dict(), sort_keys=True)


def to_repeat(rows: Sequence[Row]) -> list[BenchmarkCase]:
    """The cases to measure again: groups spread evenly over those that went well and fast."""
    groups = []
    for _, members in itertools.groupby(rows, key=lambda row: BenchmarkCase.from_dict(row).group):
        group = [row for row in members if _repeatable(row)]
        if group and sum(sum(row["samples_ms"]) for row in group) <= 1e3 * SECONDS_MOST:
            groups.append(group)
    count = min(MOST, math.ceil(SHARE * len(groups)))
    picked = [groups[(2 * i + 1) * len(groups) // (2 * count)] for i in range(count)]
    return [BenchmarkCase.from_dict(row) for group in picked for row in group]


def _repeatable(row: Row) -> bool:
    slow = row.get("suite") == "profile" and row["mode"] in SLOW_TO_PREPARE
    return row["status"] == "ok" and "samples_ms" in row and not slow


def drift(first: Sequence[Row], second: Sequence[Row]) -> dict[str, Any]:
    """How far second measurements lie off.

    Returns:
        ``cases``, their number; ``time``, the drift of a case's median, and ``ratio``, that of the
        ratio of two cases timed in turn (see :func:`flashmix.bench.stats.drift`); either is
        absent where no two measurements show it.
    """
    before = {key(row): row for row in first}
    changes: dict[Any, list[float]] = {}
    for row in second:
        old = before.get(key(row))
        if old is not None and old["status"] == row["status"] == "ok":
            change = math.log(row["median_ms"] / old["median_ms"])
            changes.setdefault(BenchmarkCase.from_dict(row).group, []).append(change)
    pairs = [a - b for group in changes.values() for a, b in itertools.combinations(group, 2)]
    times = [change for group in changes.values() for change in group]
    changed = {"time": times, "ratio": pairs}
    shown = {name: stats.drift(values) for name, values in changed.items() if values}
    return {"cases": len(times), **shown}


def measured_rows(
    folder: Path, *, run: Mapping[str, Any] | None = None, root: Path | None = None
) -> list[Row]:
    """The rows of a run; each timed one has the run's drift in its field ``drift``.

    Args and errors as those of :func:`flashmix.bench.reading.read_rows`.
    """
    rows = read_rows(folder, run=run, root=root)
    repeats = read_rows(folder, REPEATS_FILE, run=run, root=root)
    if not repeats:
        return rows
    found = drift(rows, repeats)
    if not found["cases"]:
        return rows
    return [{**row, "drift": found} if "samples_ms" in row else row for row in rows]

"""The times that ``impl="auto"`` chooses by, from the rows of a run of suite ``kernels``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flashmix.bench.case import COPY, Direction
from flashmix.bench.stats import resampled_medians
from flashmix.bench.store import Row
from flashmix.errors import ArgumentError
from flashmix.ops import OPERATORS
from flashmix.ops.dispatch import SIZE_OPTIONS

NAMES = {
    "fnet": "fnet",
    "spectral": "spectral",
    "local": "local_attention",
    "topk": "topk_attention",
    "block": "block_topk_attention",
}
"""What suite ``kernels`` calls an operator, and its name."""

DIRECTIONS: dict[Direction, str] = {"forward": "forward", "forward_backward": "training"}
"""The direction of a row, and of the signatures whose cost it is."""

CAPABILITIES = {"NVIDIA H200": (9, 0)}
"""Of GPUs whose runs did not record their compute capability."""


def choosable(op: str) -> set[str]:
    """The implementations of ``op`` that ``auto`` chooses among."""
    return {one.name for one in OPERATORS[op].registered() if one.name != "reference"}


def measured_ops(rows: Sequence[Row]) -> dict[str, Any]:
    """What calls cost: the GPU's time, or the CPU's, of a forward and of one with its backward.

    Shapes that only one implementation takes say nothing of the others near them, and are left out.

    Returns:
        For each op, dtype and direction a list of {"sizes": {...}, "ms": {implementation: [median,
        low, high]}}, as in :mod:`flashmix.ops.dispatch.tables`.
    """
    ops: dict[str, Any] = {}
    for row in rows:
        direction = DIRECTIONS.get(row["direction"])
        if direction is None or row["status"] != "ok" or row["mixer"] == COPY:
            continue
        if row.get("lengths", "full") != "full":
            continue  # a padded batch has another cost, which the tables do not hold
        if row["impl"] not in choosable(row["op"]):
            continue
        sizes = {name: row[name] for name in ("batch", "seq_len", "dim")}
        if row["op"].endswith("attention"):
            sizes["num_heads"] = row["num_heads"]
        sizes |= {name: row[name] for name in SIZE_OPTIONS if row.get(name) is not None}
        entries = ops.setdefault(row["op"], {}).setdefault(row["dtype"], {})
        entries = entries.setdefault(direction, [])
        entry = next((entry for entry in entries if entry["sizes"] == sizes), None)
        if entry is None:
            entries.append(entry := {"sizes": sizes, "ms": {}})
        entry["ms"][row["impl"]] = _time(row)
    compared: dict[str, Any] = _compared(ops)
    return compared


def _time(row: Row) -> list[float]:
    """A row's median with its 95 % interval in ms, its half of how ratios of two rows drift."""
    drift = row.get("drift", {}).get("ratio", 0.0) / 2**0.5
    medians = resampled_medians(row["samples_ms"], 1, drift)
    low, high = np.percentile(medians, [2.5, 97.5])
    median = row["median_ms"]
    return [round(float(ms), 6) for ms in (median, min(low, median), max(high, median))]


def _compared(ops: Any) -> Any:
    """Only the entries that compare implementations, and what holds such entries."""
    if isinstance(ops, list):
        return [entry for entry in ops if len(entry["ms"]) > 1]
    found = {name: _compared(held) for name, held in ops.items()}
    return {name: held for name, held in found.items() if held}


def machine_of(run: dict[str, Any]) -> str:
    """The name of the machine whose times a run holds."""
    machine = run.get("machine", {})
    if not (name := machine.get("gpu") or machine.get("cpu")):
        raise ArgumentError("the run does not name its machine, whose times they would be")
    return str(name)


def capability_of(run: dict[str, Any]) -> tuple[int, int] | None:
    """The compute capability of the GPU that a run was measured on; None for a CPU."""
    machine = run.get("machine", {})
    if not (gpu := machine.get("gpu")):
        return None
    if recorded := machine.get("gpu_capability"):
        major, minor = map(int, recorded.split("."))
        return major, minor
    if gpu not in CAPABILITIES:
        raise ArgumentError(
            f"the run does not record the compute capability of {gpu}: measure it anew"
        )
    return CAPABILITIES[gpu]

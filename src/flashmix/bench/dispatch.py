"""The times that ``impl="auto"`` chooses by, from the rows of a run of suite ``kernels``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashmix.bench.case import COPY
from flashmix.bench.store import Row
from flashmix.errors import ArgumentError
from flashmix.ops import OPERATORS
from flashmix.ops._case import KNOBS

NAMES = {
    "fnet": "fnet",
    "spectral": "spectral",
    "local": "local_attention",
    "topk": "topk_attention",
    "block": "block_topk_attention",
}
"""What suite ``kernels`` calls an operator, and its name."""


def choosable(op: str) -> set[str]:
    """The implementations of ``op`` whose order ``auto`` takes from measurements."""
    names = {one.name for one in OPERATORS[op].implementations if one.name != "reference"}
    preferred = all(one.preferred for one in OPERATORS[op].implementations)
    return set() if preferred else names


def tunable() -> list[str]:
    """What ``flashmix tune`` can measure, as suite ``kernels`` names it."""
    return [name for name, op in NAMES.items() if choosable(op)]


def measured_ops(rows: Sequence[Row]) -> dict[str, Any]:
    """What a forward costs that starts alone: Python's time to issue it, then the GPU's.

    Where either is much the larger it decides; of calls that Python takes alike for, the GPU's.

    Shapes that only one implementation takes say nothing of the others near them, and are left out.

    Returns:
        For each op and dtype a list of {"sizes": {...}, "ms": {implementation: milliseconds}}.
    """
    ops: dict[str, Any] = {}
    for row in rows:
        if row["direction"] != "forward" or row["status"] != "ok":
            continue
        if row["impl"] not in choosable(row["op"]) or row["mixer"] == COPY:
            continue
        sizes = {name: row[name] for name in ("batch", "seq_len", "dim")}
        if row["op"].endswith("attention"):
            sizes["num_heads"] = row["num_heads"]
        sizes |= {name: row[name] for name in KNOBS if row.get(name) is not None}
        entries = ops.setdefault(row["op"], {}).setdefault(row["dtype"], [])
        if not entries or entries[-1]["sizes"] != sizes:
            entries.append({"sizes": sizes, "ms": {}})
        milliseconds = row["median_ms"] + (row.get("host_ms") or 0.0)
        entries[-1]["ms"][row["impl"]] = round(milliseconds, 5)
    for op, dtypes in ops.items():
        compared = {
            dtype: [one for one in entries if len(one["ms"]) > 1]
            for dtype, entries in dtypes.items()
        }
        ops[op] = {dtype: entries for dtype, entries in compared.items() if entries}
    return {op: dtypes for op, dtypes in ops.items() if dtypes}


def machine_of(run: dict[str, Any]) -> str:
    """The name that a run's times are kept under."""
    machine = run.get("machine", {})
    if not (name := machine.get("gpu") or machine.get("cpu")):
        raise ArgumentError("the run does not name its machine, whose times they would be")
    return str(name)

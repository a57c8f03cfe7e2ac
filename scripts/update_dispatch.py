"""Write the table that ``impl="auto"`` chooses by from a run of suite ``kernels`` on a GPU.

Usage: python scripts/update_dispatch.py benchmarks/results/h200/kernels
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flashmix.bench import read_rows, read_run
from flashmix.bench.store import write_whole
from flashmix.ops import OPERATORS
from flashmix.ops._case import KNOBS
from flashmix.ops._measured import TABLE


def choosable(op: str) -> set[str]:
    """The implementations of ``op`` whose order ``auto`` takes from measurements."""
    names = {one.name for one in OPERATORS[op].implementations if one.name != "reference"}
    preferred = all(one.preferred for one in OPERATORS[op].implementations)
    return set() if preferred else names


def table(folder: Path) -> dict[str, Any]:
    """What a forward costs among others of its kind: the larger of the GPU's and Python's time.

    Shapes that only one implementation takes say nothing of the others near them, and are left out.
    """
    run = read_run(folder)
    ops: dict[str, Any] = {}
    for row in read_rows(folder):
        if row["direction"] != "forward" or row["status"] != "ok":
            continue
        if row["impl"] not in choosable(row["op"]) or row["mixer"] == "copy":
            continue
        sizes = {name: row[name] for name in ("batch", "seq_len", "dim")}
        if row["op"].endswith("attention"):
            sizes["num_heads"] = row["num_heads"]
        sizes |= {name: row[name] for name in KNOBS if row[name] is not None}
        entries = ops.setdefault(row["op"], {}).setdefault(row["dtype"], [])
        if not entries or entries[-1]["sizes"] != sizes:
            entries.append({"sizes": sizes, "ms": {}})
        entries[-1]["ms"][row["impl"]] = round(max(row["median_ms"], row["host_ms"]), 5)
    for op, dtypes in ops.items():
        compared = {
            dtype: [one for one in entries if len(one["ms"]) > 1]
            for dtype, entries in dtypes.items()
        }
        ops[op] = {dtype: entries for dtype, entries in compared.items() if entries}
    ops = {op: dtypes for op, dtypes in ops.items() if dtypes}
    machine = run["machine"]
    return {"run": folder.as_posix(), "commit": machine["commit"], "gpus": {machine["gpu"]: ops}}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_whole(TABLE, json.dumps(table(parser.parse_args().folder), indent=1) + "\n")


if __name__ == "__main__":
    main()

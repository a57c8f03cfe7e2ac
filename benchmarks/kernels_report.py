"""Write report.md of a kernels run, and the table that ``impl="auto"`` chooses by.

Usage: python benchmarks/kernels_report.py benchmarks/results/h200/kernels [--dispatch]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flashmix.ops._measured import TABLE

CHOOSABLE = ("triton", "torch")


def load(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def title(row: dict[str, Any]) -> str:
    modes = "" if row["modes"] is None else f", {row['modes']} modes"
    return f"{row['op']} [{row['batch']}, {row['seq_len']}, {row['dim']}]{modes}, {row['dtype']}"


def cell(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return row["status"]
    return f"{row['median_ms']:.4f} ms, {row['multiple']:.2f}x"


def times(rows: list[dict[str, Any]], direction: str) -> list[str]:
    """A table of one direction: a line for each case, a column for each implementation."""
    names = ["triton", "torch", "fft2", "rfft", "sdpa"]
    lines = [
        f"| {direction} | copy | " + " | ".join(names) + " |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["direction"] == direction:
            cases.setdefault(title(row), {})[row["impl"]] = row
    for case, found in cases.items():
        floor = next(iter(found.values()))["floor_ms"]
        cells = [cell(found[name]) if name in found else "" for name in names]
        lines.append(f"| {case} | {floor:.4f} ms | " + " | ".join(cells) + " |")
    return lines


def precision(rows: list[dict[str, Any]]) -> list[str]:
    """Relative errors against float64 beside that of rounding the exact result."""
    lines = ["| case | error | of rounding alone | ratio |", "| --- | --- | --- | --- |"]
    for row in rows:
        if row["impl"] == "triton" and "error" in row:
            ratio = row["error"] / row["rounding"]
            error = f"{row['error']:.2e} | {row['rounding']:.2e} | {ratio:.2f}"
            lines.append(f"| {title(row)} | {error} |")
    return lines


def memory(rows: list[dict[str, Any]]) -> list[str]:
    """Peak memory of forward and backward, beyond the inputs."""
    lines = ["| forward+backward | triton | torch | as written |", "| --- | --- | --- | --- |"]
    cases: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["direction"] == "forward+backward":
            cases.setdefault(title(row), {})[row["impl"]] = row["peak_mb"]
    for case, peaks in cases.items():
        written = peaks.get("fft2", peaks.get("rfft", 0.0))
        values = f"{peaks['triton']:.0f} MB | {peaks['torch']:.0f} MB | {written:.0f} MB"
        lines.append(f"| {case} | {values} |")
    return lines


def report(folder: Path) -> str:
    run = json.loads((folder / "run.json").read_text())
    rows = load(folder)
    parts = [
        "# Kernels",
        f"{run['gpu']}, PyTorch {run['torch']}, Triton {run['triton']}, commit {run['commit']}. "
        "Medians; multiples are of the time to copy the input to the output once, measured in "
        "the same run. `torch` is this library's FFT road, `fft2` and `rfft` the op as it is "
        "commonly written, `sdpa` the core of fused attention of the same width.",
        *("\n".join(times(rows, direction)) for direction in ("forward", "forward+backward")),
        "## Precision",
        "\n".join(precision(rows)),
        "## Memory",
        "\n".join(memory(rows)),
    ]
    return "\n\n".join(parts) + "\n"


def dispatch(folder: Path) -> dict[str, Any]:
    """Forward medians of what ``auto`` can choose from."""
    run = json.loads((folder / "run.json").read_text())
    gpu: dict[str, Any] = {}
    for row in load(folder):
        if row["direction"] != "forward" or row["impl"] not in CHOOSABLE or row["status"] != "ok":
            continue
        sizes = {name: row[name] for name in ("batch", "seq_len", "dim")}
        if row["modes"] is not None:
            sizes["modes"] = row["modes"]
        entries = gpu.setdefault(row["op"], {}).setdefault(row["dtype"], [])
        if not entries or entries[-1]["sizes"] != sizes:
            entries.append({"sizes": sizes, "ms": {}})
        entries[-1]["ms"][row["impl"]] = round(row["median_ms"], 5)
    return {"run": folder.as_posix(), "commit": run["commit"], "gpus": {run["gpu"]: gpu}}


def main() -> None:
    """Write the report beside the rows, and the dispatch table where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dispatch", action="store_true", help="also write measured.json")
    options = parser.parse_args()
    (options.folder / "report.md").write_text(report(options.folder))
    if options.dispatch:
        TABLE.write_text(json.dumps(dispatch(options.folder), indent=1) + "\n")


if __name__ == "__main__":
    main()

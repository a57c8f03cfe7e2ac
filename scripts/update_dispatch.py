"""Write the table that ``impl="auto"`` chooses by from runs of suite ``kernels`` on a GPU.

Usage: python scripts/update_dispatch.py benchmarks/results/h200/kernels*
An op is taken from the last of them that measured it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flashmix.bench import read_rows, read_run
from flashmix.bench.dispatch import machine_of, measured_ops
from flashmix.bench.store import write_whole
from flashmix.ops._measured import TABLE


def table(folders: list[Path]) -> dict[str, Any]:
    """The times of the runs' forwards, and where they are from."""
    runs: dict[str, Any] = {}
    gpus: dict[str, Any] = {}
    for folder in folders:
        run = read_run(folder)
        for op, found in measured_ops(read_rows(folder)).items():
            gpus.setdefault(machine_of(run), {})[op] = found
            runs[op] = {"folder": folder.as_posix(), "commit": run["machine"]["commit"]}
    return {"runs": runs, "gpus": gpus}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder")
    write_whole(TABLE, json.dumps(table(parser.parse_args().folders), indent=1) + "\n")


if __name__ == "__main__":
    main()

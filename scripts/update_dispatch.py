"""Write the table that ``impl="auto"`` chooses by from a run of suite ``kernels`` on a GPU.

Usage: python scripts/update_dispatch.py benchmarks/results/h200/kernels
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


def table(folder: Path) -> dict[str, Any]:
    """The times of a run's forwards, and where they are from."""
    run = read_run(folder)
    gpus = {machine_of(run): measured_ops(read_rows(folder))}
    return {"run": folder.as_posix(), "commit": run["machine"]["commit"], "gpus": gpus}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_whole(TABLE, json.dumps(table(parser.parse_args().folder), indent=1) + "\n")


if __name__ == "__main__":
    main()

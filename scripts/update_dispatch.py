"""Write the table that ``impl="auto"`` chooses by from runs of suite ``kernels`` on GPUs.

Usage: python scripts/update_dispatch.py benchmarks/results/h200/kernels*
Of a machine, an op is taken from the last of them that measured it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flashmix._files import write_whole
from flashmix.bench import read_run
from flashmix.bench.dispatch import capability_of, machine_of, measured_ops
from flashmix.bench.repeat import measured_rows
from flashmix.ops.dispatch.tables import FORMAT, SHIPPED


def table(folders: list[Path]) -> dict[str, Any]:
    """The times of the runs, and where they are from."""
    machines: dict[str, Any] = {}
    for folder in folders:
        run = read_run(folder)
        capability = capability_of(run)
        machine = machines.setdefault(
            machine_of(run),
            {"capability": capability and "{}.{}".format(*capability), "ops": {}},
        )
        for op, times in measured_ops(measured_rows(folder)).items():
            commit = run["machine"]["commit"]
            machine["ops"][op] = {"run": folder.as_posix(), "commit": commit, "times": times}
    return {"format": FORMAT, "machines": machines}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder")
    write_whole(SHIPPED, json.dumps(table(parser.parse_args().folders), indent=1) + "\n")


if __name__ == "__main__":
    main()

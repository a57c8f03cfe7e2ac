"""A run as everything that shows it reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashmix.bench import read_rows, read_run
from flashmix.bench.reading import SEARCH_FILE, Row, read_json
from flashmix.bench.reading import read_rows as read_file
from flashmix.bench.schema import TRAININGS, examples_fault
from flashmix.bench.training.examples import EXAMPLES_FILE
from flashmix.report.analysis.training import in_order, latest


def load(folder: Path, root: Path | None = None) -> tuple[dict[str, Any], list[Row]]:
    """``run.json`` and the rows of a run.

    Of trainings, the last row of each, in the order that the run lists them; ``run["examples"]`` is
    then what examples.json holds, or None, and ``run["search"]`` the rows of search.jsonl.

    ``root``: a folder above the run's, below which no link is followed.

    Raises:
        ArgumentError: the folder holds no run, or a file of it is not what flashmix writes; the
            message names the file, and the line.
    """
    run = read_run(folder, root=root)
    rows = read_rows(folder, run=run, root=root)
    if run["suite"] not in TRAININGS:
        return run, rows
    run["examples"] = read_json(folder / EXAMPLES_FILE, examples_fault, root)
    run["search"] = read_file(folder, SEARCH_FILE, run=run, root=root)
    return run, in_order(run, latest(rows))

"""A run as its report reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flashmix.bench import read_rows, read_run
from flashmix.bench.store import SEARCH_FILE, Row
from flashmix.bench.store import read_rows as read_file
from flashmix.bench.training.examples import EXAMPLES_FILE
from flashmix.report import training
from flashmix.report.trained import in_order, latest


def load(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """``run.json`` and the rows of a run.

    Of trainings, the last row of each, in the order that the run lists them; ``run["examples"]`` is
    then what examples.json holds, or None, and ``run["search"]`` the rows of search.jsonl.
    """
    run, rows = read_run(folder), read_rows(folder)
    if run.get("suite") not in training.SUITES:
        return run, rows
    path = folder / EXAMPLES_FILE
    run["examples"] = json.loads(path.read_text()) if path.exists() else None
    run["search"] = read_file(folder, SEARCH_FILE)
    return run, in_order(run, latest(rows))

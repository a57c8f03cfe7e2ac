"""``flashmix query``: SQL over the rows of runs, through DuckDB."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashmix._text import visible

EPILOG = """\
The rows of all runs named stand in the table `rows`, their folder in the column `run`.

example:
  flashmix query "select label, seq_len, median_ms from rows where direction = 'forward'
                  order by 2, 3" benchmarks/results/cpu/quick
"""


def add_command(commands: Any) -> None:
    """Add ``query`` to the command line."""
    parser = commands.add_parser(
        "query",
        help="ask runs by SQL",
        description="Run an SQL query over the rows of runs, with DuckDB.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sql", help="a query over the table `rows`")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="default: all in runs/")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from flashmix.cli.terminal import Terminal
    from flashmix.errors import ArgumentError, missing_extra

    try:
        import duckdb
    except ImportError:
        raise missing_extra("duckdb", "query", "flashmix query") from None
    folders = arguments.runs or sorted(path.parent for path in Path("runs").glob("*/run.json"))
    if not folders:
        raise ArgumentError("no run to ask: name a run's folder, or make one with flashmix bench")
    rows = _rows(folders)
    connection = duckdb.connect()
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            file.flush()
            connection.execute(
                "create table rows as select * from read_json(?, format='newline_delimited', "
                "maximum_depth=2, sample_size=-1)",
                [file.name],
            )
        connection.execute("set enable_external_access = false")
        relation = connection.sql(arguments.sql)
        if relation is not None:
            with contextlib.redirect_stdout(io.StringIO()) as shown:
                relation.show(max_rows=1000)
            Terminal().print(shown.getvalue(), soft_wrap=True, end="")
    except duckdb.Error as error:
        raise ArgumentError(f"the query failed: {error}") from None
    return 0


def _rows(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows that a report of each run has, the same fields in all of them."""
    from flashmix.errors import ArgumentError
    from flashmix.report import load

    found = [
        {**_finite(row), "run": visible(folder.resolve().name)}
        for folder in folders
        for row in load(folder)[1]
    ]
    if not found:
        raise ArgumentError("the runs have no rows yet")
    names = dict.fromkeys(["run", *(name for row in found for name in row)])
    return [{name: row.get(name) for name in names} for row in found]


def _finite(value: Any) -> Any:
    """``value`` as JSON has it: what is no finite number is null."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""``flashmix query``: SQL over the rows of runs, through DuckDB."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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
    from flashmix.bench.store import RESULTS_FILE, read_run
    from flashmix.errors import ArgumentError, missing_extra

    try:
        import duckdb
    except ImportError:
        raise missing_extra("duckdb", "query", "flashmix query") from None
    folders = arguments.runs or sorted(path.parent for path in Path("runs").glob("*/run.json"))
    if not folders:
        raise ArgumentError("no run to ask: name a run's folder, or make one with flashmix bench")
    for folder in folders:
        read_run(folder)
    files = [str(folder / RESULTS_FILE) for folder in folders]
    connection = duckdb.connect()
    try:
        connection.execute(
            "create table rows as select parse_path(filename)[-2] as run, * exclude (filename) "
            "from read_json(?, format='newline_delimited', union_by_name=true, filename=true, "
            "ignore_errors=true, maximum_depth=2)",
            [files],
        )
        connection.execute("set enable_external_access = false")
        relation = connection.sql(arguments.sql)
    except duckdb.Error as error:
        raise ArgumentError(f"the query failed: {error}") from None
    if relation is not None:
        relation.show(max_rows=1000)
    return 0

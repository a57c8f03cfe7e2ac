"""``flashmix report``: rebuild a run's report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = """\
example:
  flashmix report runs/quick-20260101-120000
"""


def add_command(commands: Any) -> None:
    """Add ``report`` to the command line."""
    parser = commands.add_parser(
        "report",
        help="rebuild the report of a run",
        description="Write report.md of runs anew from their rows, and print the summary.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from rich.console import Console

    from flashmix.report import write_report

    console = Console()
    for folder in arguments.runs:
        path = write_report(folder)
        print_summary(console, folder)
        console.print(f"\nreport: {path}", highlight=False, soft_wrap=True, markup=False)
    return 0


def print_summary(console: Console, folder: Path) -> None:
    """Print the summary table, and what the rows support."""
    from rich.markup import escape

    from flashmix.bench import read_rows, read_run
    from flashmix.cli.tables import print_section
    from flashmix.report import statements, summary

    rows = read_rows(folder)
    print_section(console, summary(read_run(folder), rows))
    console.print()
    for sentence in statements(rows):
        console.print(f"- {escape(sentence)}", highlight=False)

"""``flashmix compare``: what changed between two runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """\
example, for CI: fail where anything became more than a tenth slower
  flashmix compare runs/main runs/branch --fail-above 10%
"""


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a share such as 10% or 0.1, got {text!r}")
    return value


def add_command(commands: Any) -> None:
    """Add ``compare`` to the command line."""
    parser = commands.add_parser(
        "compare",
        help="show what changed between two runs",
        description="Compare two runs row by row and show the changes that their samples bear out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, metavar="RUN_A", help="folder of the earlier run")
    parser.add_argument("after", type=Path, metavar="RUN_B", help="folder of the later run")
    parser.add_argument(
        "--fail-above",
        type=_share,
        metavar="SHARE",
        help="exit with 1 if a case became slower by more than this, for example 10%%",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from flashmix.cli.terminal import Terminal
    from flashmix.errors import ArgumentError
    from flashmix.report import load
    from flashmix.report.analysis.compare import compare
    from flashmix.report.sections.side_by_side import comparison_section

    comparison = compare(load(arguments.before)[1], load(arguments.after)[1])
    if not comparison.changes and not comparison.broken:
        raise ArgumentError("the two runs have no measured case in common")
    Terminal().section(comparison_section(comparison))
    if arguments.fail_above is None:
        return 0
    slower = comparison.slower_than(arguments.fail_above)
    broken = [pair for pair in comparison.broken if pair[0]["status"] == "ok"]
    return int(bool(slower or broken))

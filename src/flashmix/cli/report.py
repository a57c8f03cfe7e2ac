"""``flashmix report``: rebuild a run's report, or show several runs side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmix.cli.terminal import Terminal

EPILOG = """\
In each run's folder: report.md; report.html, one page that needs no network; figures/, each chart
as SVG (light and dark) and PNG. The last two need pip install 'flashmix[report]'. Several runs also
give side-by-side.html, in the folder that holds them all or where --out says.

examples:
  flashmix report runs/quick-20260101-120000
  flashmix report runs/cpu runs/gpu                        two machines side by side
  flashmix report runs/before runs/after --out change.html
"""


def add_command(commands: Any) -> None:
    """Add ``report`` to the command line."""
    parser = commands.add_parser(
        "report",
        help="rebuild the report of a run, or show several side by side",
        description="Write report.md, report.html and figures/ of runs anew from their rows, and "
        "print the summary.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--out", type=Path, metavar="PAGE", help="where the page of several runs goes"
    )
    parser.add_argument("--no-figures", action="store_true", help="leave the pictures away")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from flashmix.cli.terminal import Terminal
    from flashmix.errors import ArgumentError
    from flashmix.report import load

    terminal = Terminal()
    if arguments.out is not None and len(arguments.runs) == 1:
        raise ArgumentError("--out is for several runs; the page of one is its own report.html")
    for folder in arguments.runs:
        load(folder)
    for folder in arguments.runs:
        print_summary(terminal, folder)
        write_all(terminal, folder, figures=not arguments.no_figures)
    if len(arguments.runs) > 1:
        _write_beside(terminal, arguments.runs, arguments.out)
    return 0


def write_all(terminal: Terminal, folder: Path, *, figures: bool = True) -> None:
    """Write everything that the installed packages allow, and say where it is."""
    from flashmix.report import write_figures, write_page, write_report

    terminal.say(f"\nreport: {write_report(folder)}")

    def page() -> None:
        terminal.say(f"page: {write_page([folder])}")
        if figures and (pictures := write_figures(folder)):
            terminal.say(f"figures: {len(pictures)} in {pictures[0].parent}")

    _if_installed(terminal, page)


def _write_beside(terminal: Terminal, folders: Sequence[Path], out: Path | None) -> None:
    from flashmix.report import write_page

    _if_installed(terminal, lambda: terminal.say(f"\nside by side: {write_page(folders, out)}"))


def _if_installed(terminal: Terminal, write: Callable[[], None]) -> None:
    """Do what needs optional packages, or say in one sentence how to get them."""
    from flashmix.errors import MissingDependencyError

    try:
        write()
    except MissingDependencyError as error:
        terminal.say(f"no page: {error}")


def print_summary(terminal: Terminal, folder: Path) -> None:
    """Print the summary table, and what the rows support."""
    from flashmix._text import one_line
    from flashmix.report import load, statements, summary

    run, rows = load(folder)
    terminal.section(summary(run, rows))
    terminal.print()
    for sentence in statements(rows):
        terminal.print(f"- {one_line(sentence)}")

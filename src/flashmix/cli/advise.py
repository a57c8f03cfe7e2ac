"""``flashmix advise``: which mixer is cheapest at a shape, by a run's rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flashmix.report.analysis.advice import Advice
    from flashmix.report.tables import Section

DIRECTIONS = {"inference": "forward", "train": "forward_backward"}

EPILOG = """\
What a whole model would gain, and what it would without any swap, flashmix profile measures.

example:
  flashmix advise --dim 768 --seq-len 4096 --direction train --run runs/quick-20260101-120000
"""


def add_command(commands: Any) -> None:
    """Add ``advise`` to the command line."""
    parser = commands.add_parser(
        "advise",
        help="rank mixers for a shape",
        description="Rank mixers by time and memory at a shape, from the rows of a run on this "
        "machine, and say where that is not measured but extrapolated.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dim", type=int, required=True, metavar="D", help="width")
    parser.add_argument("--seq-len", type=int, required=True, metavar="N", help="tokens")
    parser.add_argument("--direction", choices=tuple(DIRECTIONS), default="inference")
    parser.add_argument(
        "--run", type=Path, metavar="FOLDER", dest="folder", help="default: the newest in runs/"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from flashmix.cli.terminal import Terminal
    from flashmix.errors import ArgumentError
    from flashmix.report import load
    from flashmix.report.analysis.advice import advise
    from flashmix.report.sections.about import place

    for name in ("dim", "seq_len"):
        if getattr(arguments, name) < 1:
            raise ArgumentError(f"--{name.replace('_', '-')} must be at least 1")
    folder = arguments.folder or _newest()
    run, rows = load(folder)
    direction = DIRECTIONS[arguments.direction]
    found = advise(rows, arguments.dim, arguments.seq_len, direction)
    terminal = Terminal()
    terminal.print(f"from {folder}, measured on {place(run)}")
    batch = next(row["batch"] for row in rows if row["direction"] == direction)
    terminal.section(_section(found, batch))
    return 0


def _section(found: Sequence[Advice], batch: int) -> Section:
    """The ranking as a table."""
    from flashmix.report.tables import Section, Table, interval, number

    body = [
        [one.label, interval(one.time_ms, " ms"), number(one.peak_mb), one.basis] for one in found
    ]
    return Section(
        "Mixers by time",
        [f"One call at the run's batch of {batch}. Accuracy is not considered."],
        Table(["mixer", "time", "peak MB", "basis"], body),
    )


def _newest() -> Path:
    from flashmix.errors import ArgumentError

    runs = sorted(Path("runs").glob("quick-*/results.jsonl"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise ArgumentError(
            "no run to read: run `flashmix bench quick` first, or name one with --run"
        )
    return runs[-1].parent

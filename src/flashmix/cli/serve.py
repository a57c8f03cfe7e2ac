"""``flashmix serve``: the runs of a folder in a browser of this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """\
Bound to 127.0.0.1 and read-only: no other machine can reach it, and nothing is written. Choose two
runs in the list to see them side by side. Ctrl-C ends it.

examples:
  flashmix serve runs
  flashmix serve benchmarks/results --port 8000 --open
"""


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def add_command(commands: Any) -> None:
    """Add ``serve`` to the command line."""
    parser = commands.add_parser(
        "serve",
        help="browse the runs of a folder, and compare any of them",
        description="List the runs of a folder on localhost; open any, compare any two.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), metavar="RUNS_DIR", help="(runs)"
    )
    parser.add_argument("--port", type=_port, default=0, help="default: any free one")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command until Ctrl-C."""
    import webbrowser

    from flashmix.cli.terminal import Terminal
    from flashmix.report.html.document import vega_bundle
    from flashmix.report.html.server import Server, find_runs
    from flashmix.visualize.chart import altair

    altair()
    vega_bundle()
    terminal = Terminal()
    with Server(arguments.folder, arguments.port) as server:
        count = len(find_runs(arguments.folder))
        runs = "1 run" if count == 1 else f"{count} runs"
        terminal.say(f"{runs} of {arguments.folder} at {server.url} (Ctrl-C ends)")
        if arguments.open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            terminal.print()
    return 0

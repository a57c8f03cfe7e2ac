"""``flashmix list``: the mixers, their options and cost."""

from __future__ import annotations

import argparse
from typing import Any

WIDTH = 256

EPILOG = """\
examples:
  flashmix list
  flashmix list "f*"
"""


def add_command(commands: Any) -> None:
    """Add ``list`` to the command line."""
    parser = commands.add_parser(
        "list",
        help="list the mixers",
        description="List the mixers with their cost, parameters and options.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pattern", nargs="?", default="*", help='for example "f*"')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from rich.console import Console
    from rich.markup import escape

    from flashmix.errors import unknown_choice
    from flashmix.mixers import MIXERS, create_mixer, list_mixers, mixer_options

    names = list_mixers(arguments.pattern)
    if not names:
        raise unknown_choice("mixer", arguments.pattern, MIXERS)
    console = Console(highlight=False)
    for name in names:
        params = sum(p.numel() for p in create_mixer(name, WIDTH).parameters())
        options = ", ".join(f"{key}={value!r}" for key, value in mixer_options(name).items())
        kind = MIXERS[name]
        console.print(f"[bold]{name}[/bold]: {escape(kind.summary)}")
        console.print(f"    cost {kind.cost}; {params:,} parameters at width {WIDTH}")
        console.print(f"    {escape(options)}")
    return 0

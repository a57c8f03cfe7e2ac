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
    from flashmix.cli.terminal import Terminal, named
    from flashmix.errors import unknown_choice
    from flashmix.mixers import MIXERS, create_mixer, list_mixers, mixer_options

    names = list_mixers(arguments.pattern)
    if not names:
        raise unknown_choice("mixer", arguments.pattern, MIXERS)
    terminal = Terminal()
    for name in names:
        params = sum(p.numel() for p in create_mixer(name, WIDTH).parameters())
        options = ", ".join(f"{key}={value!r}" for key, value in mixer_options(name).items())
        kind = MIXERS[name]
        terminal.print(named(name, f": {kind.summary}"))
        terminal.print(f"    cost {kind.cost}; {params:,} parameters at width {WIDTH}")
        terminal.print(f"    {options}")
    return 0

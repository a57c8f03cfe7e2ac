"""``flashmix list``: the mixers, or families of models with the mixers that they take."""

from __future__ import annotations

import argparse
import fnmatch
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmix.cli.terminal import Terminal

WIDTH = 256

EPILOG = """\
examples:
  flashmix list
  flashmix list "f*"
  flashmix list --models                   which models the swap takes, in about a minute
  flashmix list --models "*bert*"
"""


def add_command(commands: Any) -> None:
    """Add ``list`` to the command line."""
    parser = commands.add_parser(
        "list",
        help="list the mixers, or the models that the swap takes",
        description="List the mixers with their cost, parameters and options; or families of "
        "transformers' models with the mixers that each takes, found by swapping a small one.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pattern", nargs="?", default="*", help='for example "f*"')
    parser.add_argument(
        "--models", action="store_true", help="list families of models instead, by name or class"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from flashmix.cli.terminal import Terminal

    terminal = Terminal()
    if arguments.models:
        return _models(terminal, arguments.pattern)
    return _mixers(terminal, arguments.pattern)


def _mixers(terminal: Terminal, pattern: str) -> int:
    from flashmix.cli.terminal import named
    from flashmix.errors import unknown_choice
    from flashmix.mixers import MIXERS, create_mixer, list_mixers, mixer_options

    names = list_mixers(pattern)
    if not names:
        raise unknown_choice("mixer", pattern, MIXERS)
    for name in names:
        params = sum(p.numel() for p in create_mixer(name, WIDTH).parameters())
        options = ", ".join(f"{key}={value!r}" for key, value in mixer_options(name).items())
        kind = MIXERS[name]
        terminal.print(named(name, f": {kind.summary}"))
        terminal.print(f"    cost {kind.cost}; {params:,} parameters at width {WIDTH}")
        terminal.print(f"    {options}")
    return 0


def _models(terminal: Terminal, pattern: str) -> int:
    from flashmix.cli.terminal import named
    from flashmix.errors import ArgumentError
    from flashmix.hf.families import FAMILIES
    from flashmix.hf.interface import transformers
    from flashmix.hf.support import columns, reasons, refusals

    def matches(text: str) -> bool:
        return fnmatch.fnmatchcase(text.lower(), pattern.lower())

    families = [one for one in FAMILIES if matches(one.name) or matches(one.model)]
    if not families:
        raise ArgumentError(
            f"no family of models is named {pattern!r}; flashmix list --models lists all, and a "
            'pattern such as "*bert*" some'
        )
    transformers().utils.logging.set_verbosity_error()
    for family in families:
        head = f"{family.name} ({family.model})"
        if not family.exists():
            terminal.say(f"{head}: not in transformers {transformers().__version__}")
            continue
        refused = refusals(family)
        taken = [name for name in columns() if name not in refused]
        terminal.print(named(head, f": {', '.join(taken) or 'refused'}"), soft_wrap=True)
        for reason in reasons(refused):
            terminal.say(f"    not {reason}" if taken else f"    {reason}")
    return 0

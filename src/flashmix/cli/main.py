"""Entry point: finds the command, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence

from flashmix._text import one_line, visible
from flashmix._version import __version__
from flashmix.cli import (
    advise,
    bench,
    compare,
    doctor,
    finetune,
    listing,
    pretrain,
    profile,
    query,
    report,
    serve,
    show,
    swap,
    tune,
)
from flashmix.cli.parser import Parser
from flashmix.errors import ArgumentError, FlashmixError

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
examples:
  flashmix bench quick                     all mixers on this machine, in about three minutes
  flashmix bench quick --mixers fnet,local --seq-lens 512,4096
  flashmix bench quick --resume runs/quick-20260101-120000
  flashmix finetune --task digits --mixers attention,fnet --epochs 30
  flashmix report runs/quick-20260101-120000
  flashmix serve runs                      every run of a folder in the browser
  flashmix compare runs/before runs/after --fail-above 10%
  flashmix advise --dim 768 --seq-len 4096 --direction train
  flashmix show "local(window=16)"         pictures of what a mixer does
  flashmix profile bert-base               what a swap would give this model here, and what else
  flashmix swap bert --mixers 'fnet*10,attention*2' --out bert-fnet
  flashmix list                            mixers, their options and cost
  flashmix tune                            measure what impl="auto" shall run here
  flashmix doctor                          what is installed, what is missing, this machine's limits

exit codes: 0 done, 1 something failed, 2 wrong usage, 130 interrupted (what is finished is kept)
"""


COMMANDS = (
    *(bench, report, serve, compare, advise, query),
    *(profile, swap, finetune, pretrain, show),
    *(listing, doctor, tune),
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command and all its subcommands."""
    parser = Parser(
        prog="flashmix",
        description="Token mixers for PyTorch, attention and what can stand in for it, "
        "measured honestly.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"flashmix {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in COMMANDS:
        module.add_command(commands)
    return parser


class _Lines(logging.Formatter):
    """A record as a line that holds nothing which a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@contextlib.contextmanager
def _log_shown() -> Iterator[None]:
    """What the library logs at level INFO, a line each on stderr, and its warnings, as text."""
    log, handler = logging.getLogger("flashmix"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("flashmix: %(message)s"))
    level, formatted = log.level, warnings.formatwarning
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    warnings.formatwarning = lambda *given, **rest: visible(formatted(*given, **rest))
    try:
        yield
    finally:
        warnings.formatwarning = formatted
        log.removeHandler(handler)
        log.setLevel(level)


def _complain(message: object, before: str = "") -> None:
    """Say what went wrong, in one line."""
    print(f"{before}flashmix: {one_line(str(message))}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return EXIT_OK
    try:
        with _log_shown():
            code: int = arguments.run(arguments)
    except ArgumentError as error:
        _complain(error)
        return EXIT_USAGE
    except (FlashmixError, OSError) as error:
        _complain(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        _complain("interrupted", before="\n")
        return EXIT_INTERRUPTED
    return code

"""``flashmix tune``: measure the implementations here, for ``impl="auto"`` to choose by."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmix.cli.bench import default_folder, device_name, numbers, progress_listener, words

if TYPE_CHECKING:
    from flashmix.cli.terminal import Terminal

EPILOG = """\
Every op has several implementations. Which is the fastest depends on the machine, the dtype and the
shape: impl="auto" uses measurements, and where there are none an implementation that is safe
everywhere. This command measures all that can run here, forward and with the backward, and writes
what it found to

  $XDG_CACHE_HOME/flashmix/dispatch.json     (by default ~/.cache/flashmix/dispatch.json)

or to the file that FLASHMIX_DISPATCH names. From then on auto and flashmix.explain use it before
the table that comes with flashmix; a call takes the measured shape that is nearest to its own. It
is valid for this release of flashmix and of PyTorch; tune again after an upgrade (a warning says
so). To undo it, remove the file.

The rows are kept in a run's folder like those of flashmix bench; after Ctrl-C, --resume FOLDER goes
on and repeats nothing.

examples:
  flashmix tune                                     the device that PyTorch prefers
  flashmix tune --device cpu --ops fnet --seq-lens 512,2048
  flashmix tune --resume runs/tune-20260101-120000
  flashmix tune --run runs/kernels-20260101-120000  a run of suite kernels, measured before
"""


def add_command(commands: Any) -> None:
    """Add ``tune`` to the command line."""
    parser = commands.add_parser(
        "tune",
        help="measure which implementations are the fastest here",
        description="Measure the implementations of ops on this machine, for impl='auto' to choose "
        "by.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto (default) takes a GPU where PyTorch sees one",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: float32 on cpu, bfloat16 on cuda, which also applies to float16",
    )
    parser.add_argument("--ops", type=words, metavar="OP,OP,...", help="default: all there are")
    parser.add_argument(
        "--seq-lens", type=numbers, metavar="N,N,...", help="only these of the usual lengths"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where rows go (default: runs/tune-DATE-TIME)"
    )
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on after an interruption")
    parser.add_argument(
        "--run",
        type=Path,
        metavar="FOLDER",
        dest="folder",
        help="measure nothing: take the rows of this run of suite kernels",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from flashmix.bench.dispatch import capability_of, machine_of, measured_ops
    from flashmix.cli.terminal import Terminal
    from flashmix.errors import ArgumentError, FlashmixError
    from flashmix.ops.dispatch import tables
    from flashmix.report import load

    terminal = Terminal()
    if sum(one is not None for one in (arguments.out, arguments.resume, arguments.folder)) > 1:
        raise ArgumentError("--out, --resume and --run each name the folder; give one of them")
    folder = arguments.folder
    if folder is None:
        folder = _measure(terminal, arguments)
        if folder is None:
            return 130
    measured, rows = load(folder)
    if measured["suite"] != "kernels":
        raise ArgumentError(f"{folder} is a run of suite {measured['suite']!r}, not 'kernels'")
    ops = measured_ops(rows)
    if not ops:
        raise FlashmixError(
            f"{folder} holds no shape that two implementations ran, so there is nothing to choose"
        )
    place = tables.write(machine_of(measured), capability_of(measured), ops)
    for op, dtypes in ops.items():
        for dtype, directions in dtypes.items():
            for direction, entries in directions.items():
                terminal.say(f"{op}, {dtype}, {direction}, on {machine_of(measured)}:")
                for entry in entries:
                    terminal.say(f"  {_in_words(entry)}")
    terminal.say(f"wrote {place}; impl='auto' and flashmix.explain use it from now on")
    return 0


def _in_words(entry: dict[str, Any]) -> str:
    """A measured shape in words, the fastest first."""
    sizes = ", ".join(f"{name} {size}" for name, size in entry["sizes"].items())
    times = sorted((time[0], name) for name, time in entry["ms"].items())
    return f"{sizes}: " + ", ".join(f"{name} {ms:.3g} ms" for ms, name in times)


def _measure(terminal: Terminal, arguments: argparse.Namespace) -> Path | None:
    """Measure into a folder and return it; None after Ctrl-C."""
    from flashmix.bench import Grid, run_suite
    from flashmix.bench.dispatch import DIRECTIONS, NAMES
    from flashmix.errors import unknown_choice

    ops = arguments.ops or tuple(NAMES)
    for op in ops:
        if op not in NAMES:
            raise unknown_choice("op to tune", op, NAMES)
    folder: Path = arguments.resume or arguments.out or default_folder("tune")
    grid = Grid(
        lengths=("full",),
        device=device_name(arguments.device),
        dtype=arguments.dtype,
        mixers=ops,
        seq_lens=arguments.seq_lens,
        directions=tuple(DIRECTIONS),
        baselines=False,
    )
    try:
        with progress_listener(terminal) as listener:
            run_suite(
                "kernels", grid, folder, resume=arguments.resume is not None, listener=listener
            )
    except KeyboardInterrupt:
        terminal.say(
            "\ninterrupted; finished cases are kept and no table was written. Go on with:\n"
            f"  flashmix tune --resume {shlex.quote(str(folder))}"
        )
        return None
    return folder

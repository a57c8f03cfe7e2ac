"""``flashmix bench``: run a suite, show progress, end with a table and a report."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmix.bench import Progress

EPILOG = """\
A run's folder holds run.json (machine, versions, command), results.jsonl (a row a line, written as
they come) and report.md. After Ctrl-C or a kill, --resume FOLDER goes on and repeats nothing.

examples:
  flashmix bench quick
  flashmix bench quick --device cuda --dtype bfloat16 --seq-lens 512,4096,16384
  flashmix bench quick --mixers "fnet,local(window=64)" --directions forward
  flashmix bench --list
"""


def _numbers(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(
            f"expected positive integers such as 512,2048, got {text!r}"
        )
    return values


def _number(text: str) -> int:
    values = _numbers(text)
    if len(values) != 1:
        raise argparse.ArgumentTypeError(f"expected one positive integer, got {text!r}")
    return values[0]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return value


def _words(text: str) -> tuple[str, ...]:
    from flashmix.mixers.spec import split_list

    return tuple(split_list(text))


def _directions(text: str) -> tuple[str, ...]:
    known = ("forward", "forward_backward", "train")
    words = tuple(part.strip() for part in text.split(","))
    if unknown := [word for word in words if word not in known]:
        raise argparse.ArgumentTypeError(
            f"expected some of {', '.join(known)}, got {', '.join(map(repr, unknown))}"
        )
    return words


def add_command(commands: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = commands.add_parser(
        "bench",
        help="measure mixers and write a report",
        description="Measure mixers on this machine, fused attention always among the baselines.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", nargs="?", help="name of a suite; see --list")
    parser.add_argument("--list", action="store_true", help="list the suites and end")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto (default) takes a GPU where PyTorch sees one",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: float32 on cpu, bfloat16 on cuda",
    )
    parser.add_argument("--batch", type=_number, metavar="B", help="sequences in a batch")
    parser.add_argument("--seq-lens", type=_numbers, metavar="N,N,...", help="lengths in tokens")
    parser.add_argument("--dim", type=_number, metavar="D", help="width")
    parser.add_argument("--num-heads", type=_number, metavar="H", help="heads")
    parser.add_argument(
        "--mixers",
        type=_words,
        metavar="M,M,...",
        help='for example "fnet,local(window=64)"; the baselines always run',
    )
    parser.add_argument(
        "--directions",
        type=_directions,
        metavar="D,D,...",
        help="some of forward, forward_backward, train",
    )
    parser.add_argument(
        "--time-limit",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="seconds without progress before a case counts as hung (default 60)",
    )
    parser.add_argument("--threads", type=_number, metavar="T", help="CPU threads of PyTorch")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and training (default 0)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write (default: runs/SUITE-DATE-TIME)"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="go on with an interrupted run; its own settings apply",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from rich.console import Console

    from flashmix.bench import SUITES, Grid, build_suite, read_rows, run_suite
    from flashmix.errors import ArgumentError

    console = Console()
    grid = Grid(
        device=_device(arguments.device),
        dtype=arguments.dtype,
        batch=arguments.batch,
        seq_lens=arguments.seq_lens,
        dim=arguments.dim,
        num_heads=arguments.num_heads,
        mixers=arguments.mixers,
        directions=arguments.directions,
        seed=arguments.seed,
    )
    if arguments.list:
        for name in SUITES:
            suite = build_suite(name, grid)
            console.print(
                f"{name}: {suite.about} ({len(suite.cases)} cases on {grid.device})",
                highlight=False,
            )
        return 0
    if arguments.resume is not None and arguments.out is not None:
        raise ArgumentError("--resume already names the folder; leave --out away")
    if arguments.suite is None and arguments.resume is None:
        raise ArgumentError(f"name a suite: {', '.join(SUITES)} (flashmix bench --list)")
    out = arguments.resume or arguments.out or _default_folder(arguments.suite)
    try:
        with progress_listener(console) as listener:
            run_suite(
                arguments.suite or "",
                grid,
                out,
                threads=arguments.threads,
                time_limit=arguments.time_limit,
                resume=arguments.resume is not None,
                listener=listener,
            )
    except KeyboardInterrupt:
        console.print(
            f"\ninterrupted; finished cases are kept. Go on with:\n  flashmix bench --resume {out}",
            highlight=False,
        )
        return 130
    from flashmix.cli.report import print_summary
    from flashmix.report import write_report

    rows = read_rows(out)
    print_summary(console, rows)
    console.print(f"\nreport: {write_report(out)}", highlight=False, soft_wrap=True)
    return 0


def _device(choice: str) -> str:
    if choice != "auto":
        return choice
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _default_folder(suite: str) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{suite}-{stamp}"


class progress_listener:  # noqa: N801  (used like a function)
    """A progress bar with the time left; a line per finished case where there is no terminal."""

    def __init__(self, console: Any) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._console = console
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Callable[[Progress], None]:
        if self._console.is_terminal:
            self._bar.start()
        return self._hear

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _hear(self, progress: Progress) -> None:
        self._bar.update(
            self._task, completed=progress.done, total=progress.total, description=progress.now
        )
        if not self._console.is_terminal and progress.row is not None:
            self._console.print(
                f"[{progress.done}/{progress.total}] {progress.now}", highlight=False, markup=False
            )

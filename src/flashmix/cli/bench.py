"""``flashmix bench``: run a suite, show progress, end with a table and a report."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmix.bench import Grid, Progress
    from flashmix.cli.terminal import Terminal

EPILOG = """\
A run's folder holds run.json (machine, versions, command), results.jsonl (a row a line, written as
they come) and report.md; with pip install 'flashmix[report]' also report.html, one page that needs
no network, and figures/. After Ctrl-C or a kill, --resume FOLDER goes on and repeats nothing.

examples:
  flashmix bench quick
  flashmix bench quick --device cuda --dtype bfloat16 --seq-lens 512,4096,16384
  flashmix bench quick --mixers "fnet,local(window=64)" --directions forward
  flashmix bench naive --remedies
  flashmix bench model --models minilm-l6 --mixers "fnet;fnet,attention" --lengths uniform
  flashmix bench model --seq-lens 512 --directions inference --modes compile,reduce-overhead
  flashmix bench parallel --ranks 2
  torchrun --nproc-per-node 2 -m flashmix bench parallel --device cuda
  flashmix bench all --device cpu
  flashmix bench --list
"""

DIRECTIONS = (
    "forward",
    "backward",
    "forward_backward",
    "train_step",
    "train",
    "properties",
    "inference",
    "inference_b1",
)
LENGTHS = ("full", "uniform")
MODES = ("eager", "compile", "reduce-overhead")


def numbers(text: str) -> tuple[int, ...]:
    """Positive integers separated by commas, for argparse."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(
            f"expected positive integers such as 512,2048, got {text!r}"
        )
    return values


def number(text: str) -> int:
    """A positive integer, for argparse."""
    values = numbers(text)
    if len(values) != 1:
        raise argparse.ArgumentTypeError(f"expected one positive integer, got {text!r}")
    return values[0]


def seconds(text: str) -> float:
    """A positive number of seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return value


def words(text: str) -> tuple[str, ...]:
    """Names separated by commas outside brackets, or by semicolons, for argparse."""
    from flashmix.errors import ArgumentError
    from flashmix.mixers.spec import split_list

    try:
        return tuple(split_list(text, ";" if ";" in text else ","))
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def some_of(what: str, choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Some of ``choices`` separated by commas, for argparse."""

    def parse(text: str) -> tuple[str, ...]:
        from flashmix.errors import unknown_choice

        words = tuple(part.strip() for part in text.split(","))
        for word in words:
            if word not in choices:
                raise argparse.ArgumentTypeError(str(unknown_choice(what, word, choices)))
        return words

    return parse


def add_command(commands: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = commands.add_parser(
        "bench",
        help="measure mixers and write a report",
        description="Measure mixers on this machine, fused attention always among the baselines.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", nargs="?", help="name of a suite, or all; see --list")
    parser.add_argument("--list", action="store_true", help="list the suites with cases and time")
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
    parser.add_argument("--batch", type=number, metavar="B", help="sequences in a batch")
    parser.add_argument("--seq-lens", type=numbers, metavar="N,N,...", help="lengths in tokens")
    parser.add_argument("--dims", type=numbers, metavar="D,D,...", help="widths")
    parser.add_argument("--num-heads", type=number, metavar="H", help="heads")
    parser.add_argument(
        "--mixers",
        type=words,
        metavar="M,M,...",
        help='for example "fnet,local(window=64)"; the baselines always run. Semicolons '
        'separate patterns: "fnet;fnet*10,attention*2"',
    )
    parser.add_argument(
        "--directions",
        type=some_of("direction", DIRECTIONS),
        metavar="D,D,...",
        help=f"some of {', '.join(DIRECTIONS)}",
    )
    parser.add_argument(
        "--lengths",
        type=some_of("lengths", LENGTHS),
        metavar="L,L",
        help="in suites quick, kernels and model: full batches, or sequences of uniform lengths "
        "from N/4 to N, padded (default: both)",
    )
    parser.add_argument(
        "--models",
        type=words,
        metavar="M,M,...",
        help="in suite model: some of bert-base, minilm-l6, bert-tiny, vit-b16",
    )
    parser.add_argument(
        "--modes",
        type=some_of("mode", MODES),
        metavar="M,M,...",
        help="in suite model: some of eager (default), compile, reduce-overhead",
    )
    parser.add_argument(
        "--passes", type=number, metavar="P", help="timed samples of suites with a fixed number"
    )
    parser.add_argument(
        "--remedies",
        action="store_true",
        help="in suite naive: also what could replace naive attention, on the same grid",
    )
    parser.add_argument(
        "--ranks",
        type=number,
        metavar="P",
        help="in suite parallel, and naive with --remedies: processes (on a GPU machine: GPUs) "
        "that the tokens are spread over; started here, or by torchrun",
    )
    parser.add_argument(
        "--time-limit",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds without progress before a case counts as hung (default 60)",
    )
    parser.add_argument("--threads", type=number, metavar="T", help="CPU threads of PyTorch")
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
    from flashmix.bench import SUITES
    from flashmix.bench.ranks.launch import release_ranks, serve_rank
    from flashmix.cli.terminal import Terminal
    from flashmix.errors import ArgumentError
    from flashmix.tasks.distributed import launched

    terminal = Terminal()
    if arguments.list:
        _list(terminal, arguments)
        return 0
    if arguments.resume is not None and arguments.out is not None:
        raise ArgumentError("--resume already names the folder; leave --out away")
    if arguments.suite is None and arguments.resume is None:
        raise ArgumentError(f"name a suite: {', '.join(SUITES)} or all (flashmix bench --list)")
    if launched() and os.environ["RANK"] != "0":
        serve_rank()
        return 0
    out = arguments.resume or arguments.out or default_folder(arguments.suite)
    try:
        if arguments.suite == "all":
            for name in SUITES:
                _run_one(terminal, arguments, name, out / name)
        else:
            _run_one(terminal, arguments, arguments.suite, out)
    except KeyboardInterrupt:
        terminal.say(_interrupted(arguments.suite, out))
        return 130
    finally:
        if launched():
            release_ranks()
    return 0


def _interrupted(suite: str | None, out: Path) -> str:
    """What to say after Ctrl-C."""
    from flashmix.bench.store import RUN_FILE

    if not any((*out.glob(RUN_FILE), *out.glob(f"*/{RUN_FILE}"))):
        return "\ninterrupted before anything was measured"
    name = "all " if suite == "all" else ""
    return (
        "\ninterrupted; finished cases are kept. Go on with:\n"
        f"  flashmix bench {name}--resume {shlex.quote(str(out))}"
    )


def _grid(arguments: argparse.Namespace) -> Grid:
    from flashmix.bench import Grid

    return Grid(
        device=device_name(arguments.device),
        dtype=arguments.dtype,
        batch=arguments.batch,
        seq_lens=arguments.seq_lens,
        dims=arguments.dims,
        num_heads=arguments.num_heads,
        mixers=arguments.mixers,
        directions=arguments.directions,
        passes=arguments.passes,
        remedies=arguments.remedies,
        ranks=arguments.ranks,
        lengths=arguments.lengths,
        models=arguments.models,
        modes=arguments.modes,
        seed=arguments.seed,
    )


def _begun_grid(folder: Path) -> Grid | None:
    """The grid that an interrupted ``bench all`` in ``folder`` began with, or None."""
    from flashmix.bench import Grid, read_run
    from flashmix.bench.store import RUN_FILE

    begun = sorted(folder.glob(f"*/{RUN_FILE}"))
    return Grid.from_dict(read_run(begun[0].parent)["grid"]) if begun else None


def _list(terminal: Terminal, arguments: argparse.Namespace) -> None:
    from flashmix.bench import SUITES, build_suite
    from flashmix.bench.estimate import suite_minutes
    from flashmix.cli.terminal import named

    grid = _grid(arguments)
    for name in SUITES:
        suite = build_suite(name, grid)
        minutes = max(1, round(suite_minutes(suite)))
        terminal.print(named(name, f": {suite.about}"))
        terminal.print(f"    {len(suite.cases)} cases on {grid.device}, roughly {minutes} min")
        for note in suite.notes:
            terminal.print(f"    {note}")


def _run_one(
    terminal: Terminal, arguments: argparse.Namespace, name: str | None, out: Path
) -> None:
    """Run or resume one suite into ``out``, print its summary and write its report."""
    from flashmix.bench import run_suite
    from flashmix.bench.store import RUN_FILE
    from flashmix.cli.report import print_summary, write_all

    begun = (out / RUN_FILE).exists()
    with progress_listener(terminal) as listener:
        run_suite(
            name,
            (_begun_grid(out.parent) if arguments.suite == "all" else None) or _grid(arguments),
            out,
            threads=arguments.threads,
            time_limit=arguments.time_limit,
            resume=arguments.resume is not None and (begun or arguments.suite != "all"),
            listener=listener,
        )
    print_summary(terminal, out)
    write_all(terminal, out)


def device_name(choice: str) -> str:
    """What "auto" means here."""
    if choice != "auto":
        return choice
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_folder(suite: str) -> Path:
    """Where a run goes that was given no folder."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{suite}-{stamp}"


class progress_listener:  # noqa: N801  (used like a function)
    """A progress bar with the time left; a line per finished case where there is no terminal."""

    def __init__(self, terminal: Terminal) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        from flashmix.cli.terminal import progress_bar

        self._terminal = terminal
        self._bar = progress_bar(
            terminal,
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Callable[[Progress], None]:
        if self._terminal.is_terminal:
            self._bar.start()
        return self._hear

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _hear(self, progress: Progress) -> None:
        self._bar.update(
            self._task, completed=progress.done, total=progress.total, description=progress.now
        )
        if not self._terminal.is_terminal and progress.row is not None:
            self._terminal.say(f"[{progress.done}/{progress.total}] {progress.now}")

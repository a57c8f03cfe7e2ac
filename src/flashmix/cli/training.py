"""What ``flashmix finetune`` and ``flashmix pretrain`` share."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmix.cli.bench import progress_listener

if TYPE_CHECKING:
    from flashmix.bench.training import Experiment
    from flashmix.tasks.finetuning import FinetuneConfig
    from flashmix.tasks.pretraining import PretrainConfig

COMMON = ("data", "batch_size", "seq_len", "warmup", "limit")

MIXERS_HELP = (
    "a pattern over layers for each model, separated by commas: attention,fnet; or by semicolons, "
    "where a pattern has commas itself: 'attention; spectral,attention'"
)


def patterns(text: str) -> tuple[str, ...]:
    """Patterns over layers: separated by semicolons where there is one, else by commas."""
    from flashmix.errors import ArgumentError
    from flashmix.mixers.spec import split_list

    try:
        words = split_list(text, ";" if ";" in text else ",")
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not (kept := tuple(word for word in words if word)):
        raise argparse.ArgumentTypeError("expected at least one mixer, such as attention,fnet")
    return kept


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from zero on, separated by commas; none of empty text."""
    try:
        values = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        values = (-1,)
    if any(value < 0 for value in values):
        raise argparse.ArgumentTypeError(f"expected numbers such as 0,1,2, got {text!r}")
    return values


def rates(text: str) -> tuple[float, ...]:
    """Learning rates, separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected rates such as 1e-3,3e-3, got {text!r}"
        ) from None


def add_common(parser: argparse.ArgumentParser, seeds: int) -> None:
    """Options that both commands have."""
    parser.add_argument(
        "--mixers", type=patterns, default=("attention", "fnet"), metavar="A,B", help=MIXERS_HELP
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=seeds,
        metavar="N",
        help=f"train each model with seeds 0 to N-1 (default {seeds})",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="parquet, CSV or aclImdb's folders; default: FLASHMIX_DATA, else the hub",
    )
    parser.add_argument(
        "--lr",
        type=rates,
        metavar="RATE",
        help="peak learning rate; of several, 1e-3,3e-3, each model takes the one that is best on "
        "validation, tried with the first seed",
    )
    parser.add_argument("--batch-size", type=int, metavar="B")
    parser.add_argument("--seq-len", type=int, metavar="N", help="longest input, in tokens")
    parser.add_argument("--warmup", type=float, metavar="SHARE", help="of all steps")
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto",
        help="auto: bfloat16 autocast on a GPU, float32 on the CPU",
    )  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--limit", type=int, metavar="N", help="use only N examples, for a trial")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="trainings at a time; with more than one, training times are steps times the step "
        "time measured alone",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of PyTorch, in each process")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/COMMAND-TIME")
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="go on with a run; its own options hold"
    )


def settings(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """What both commands' configurations share, and the options of ``names`` that were given."""
    values = {name: getattr(arguments, name) for name in (*COMMON, *names)}
    found = {name: value for name, value in values.items() if value is not None}
    if arguments.lr:
        found["lr"] = arguments.lr[0]
    return {**found, "compile": arguments.compile, **_device_and_precision(arguments)}


def experiment(
    arguments: argparse.Namespace, config: FinetuneConfig | PretrainConfig, **own: Any
) -> Experiment:
    """The experiment that the options ask for; ``own`` are fields of one command alone."""
    from flashmix.bench.training import Experiment
    from flashmix.errors import ArgumentError

    if arguments.seeds < 1:
        raise ArgumentError(f"--seeds must be at least 1, got {arguments.seeds}")
    return Experiment(
        config=config,
        mixers=arguments.mixers,
        seeds=tuple(range(arguments.seeds)),
        rates=arguments.lr or (),
        jobs=arguments.jobs,
        **own,
    )


def _device_and_precision(arguments: argparse.Namespace) -> dict[str, Any]:
    """What "auto" means here."""
    import torch

    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = arguments.precision
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    return {"device": device, "precision": precision}


def run_command(
    arguments: argparse.Namespace, make: Callable[[argparse.Namespace], Experiment]
) -> int:
    """Run the experiment that ``make`` makes of the options, or resume one, and report on it."""
    from flashmix.bench.store import RUN_FILE
    from flashmix.bench.training import run_experiment
    from flashmix.cli.report import print_summary, write_all
    from flashmix.cli.terminal import Terminal
    from flashmix.errors import ArgumentError
    from flashmix.report import load

    if arguments.resume is not None and arguments.out is not None:
        raise ArgumentError("--resume already names the folder; leave --out away")
    kind = arguments.command
    asked = make(arguments) if arguments.resume is None else None
    lead = os.environ.get("RANK", "0") == "0"
    terminal = Terminal(quiet=not lead)
    out = arguments.resume or arguments.out or _default_folder(kind)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with progress_listener(terminal) as listener:
            run_experiment(
                asked,
                out,
                kind=kind,
                resume=arguments.resume is not None,
                threads=arguments.threads,
                listener=listener,
            )
    except KeyboardInterrupt:
        begun = (out / RUN_FILE).exists()
        text = f"go on with:\n  flashmix {kind} --resume {shlex.quote(str(out))}"
        terminal.say(f"\ninterrupted; {text}" if begun else "\ninterrupted before anything began")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if not lead:
        return 0
    print_summary(terminal, out)
    write_all(terminal, out)
    failed = [row for row in load(out)[1] if row["status"] != "ok"]
    for row in failed:
        terminal.say(
            f"{row['mixers']}, seed {row['seed']}: {row['status']}: {row.get('error', '')}"
        )
    for sentence in (left := _undecided(kind, out)):
        terminal.say(sentence)
    return 1 if failed or left else 0


def _undecided(kind: str, out: Path) -> list[str]:
    """What is to be said of each trial that left a pattern's learning rate undecided."""
    from flashmix.bench import read_run
    from flashmix.bench.store import SEARCH_FILE, read_rows
    from flashmix.bench.training.search import undecided

    experiment = read_run(out)["experiment"]
    rows = read_rows(out, SEARCH_FILE)
    said = []
    for mixers, rate, row in undecided(experiment["mixers"], experiment.get("rates", ()), rows):
        how = f"{row['status']}: {row.get('error', '')}" if row else "not tried"
        said.append(
            f"{mixers}: the learning rate is undecided, for the trial at {rate:g} has no result "
            f"({how}); try it again: flashmix {kind} --resume {shlex.quote(str(out))}"
        )
    return said


def _default_folder(kind: str) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{kind}-{stamp}"

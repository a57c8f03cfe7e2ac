"""``flashmix profile``: what a swap would give a model here, and what else would, in minutes."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmix.cli.bench import (
    default_folder,
    device_name,
    number,
    numbers,
    progress_listener,
    seconds,
    some_of,
)
from flashmix.cli.training import patterns

if TYPE_CHECKING:
    from flashmix.bench import Grid

MODES = ("compile", "reduce-overhead", "int8", "onnx", "onnx-int8", "openvino")

EPILOG = """\
MODEL is a folder with config.json, a hub id, or a named configuration:
  {named}
Speed does not depend on weights, so none are read: the model is built from its config, without a
head, and nothing is trained. What a mixer costs in accuracy, flashmix finetune measures.

what is measured, in turn, each against the model with PyTorch's fused attention (SDPA):
  the ceiling    mixing made free: no swap can be faster
  the swaps      each pattern of --mixers, padded and without padding
  what else      eager attention, removing padding alone, torch.compile; on a CPU also int8, ONNX
                 Runtime (pip install 'flashmix[onnx]') and OpenVINO (flashmix[openvino])
What is not installed, or fails, is listed with its reason. The parts of the time (mixing, its
projections, the MLPs, the rest) are timed in calls of their own.

The batch is chosen so that a profile takes about two minutes on two quiet cores for a small model;
more for a large one, a larger --batch, --train, or patterns in other --modes. After Ctrl-C or a
kill, --resume FOLDER goes on and repeats nothing. A run's folder is one of flashmix bench: report,
compare, serve and query read it.

examples:
  flashmix profile minilm-l6
  flashmix profile sentence-transformers/all-MiniLM-L6-v2 --data reviews.csv --column text
  flashmix profile bert-base --seq-len 512 --batch 8 --mixers "fnet; fnet*10,attention*2"
  flashmix profile my-model --train --price-per-hour 0.40
  flashmix profile bert-base --device cuda --modes compile
  flashmix profile --resume runs/profile-20260101-120000
"""


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"expected a price such as 0.40, got {text!r}")
    return value


def add_command(commands: Any) -> None:
    """Add ``profile`` to the command line."""
    parser = commands.add_parser(
        "profile",
        help="measure what a swap would give your model here, and what else would",
        description="Where the time of a model goes on this machine, the most that any swap could "
        "give, what each pattern of mixers gives, and what would without any training, in about "
        "two minutes.",
        epilog=EPILOG.format(named=_named()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="see below")
    parser.add_argument(
        "--seq-len",
        type=number,
        metavar="N",
        help="tokens of the longest sequence of a batch (default: 128 on a CPU, 512 on a GPU); "
        "with --data, where texts are cut",
    )
    parser.add_argument(
        "--batch", type=number, metavar="B", help="sequences in a batch (default: what is quick)"
    )
    parser.add_argument(
        "--lengths",
        type=some_of("lengths", ("full", "uniform")),
        metavar="L",
        help="without --data: uniform (default), lengths from N/4 to N, padded; or full",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="texts whose lengths are used: .parquet or .csv with a column of texts, or .txt with "
        "a text a line",
    )
    parser.add_argument("--column", default="text", metavar="C", help="of --data (default: text)")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="a folder or hub id (default: the model's own)"
    )
    parser.add_argument(
        "--mixers",
        type=patterns,
        metavar="M,M,...",
        help="patterns to swap in (default: fnet, spectral, local(window=128), and fnet with two "
        'layers of attention). Semicolons separate patterns: "fnet;fnet*10,attention*2;"',
    )
    parser.add_argument(
        "--modes",
        type=some_of("mode", MODES),
        metavar="M,M,...",
        help=f"how the patterns run as well: some of {', '.join(MODES)} (default: none)",
    )
    parser.add_argument(
        "--seq-lens",
        type=numbers,
        metavar="N,N,...",
        help="other lengths at which the ceiling is measured (default: 128 to 2048 tokens)",
    )
    parser.add_argument("--train", action="store_true", help="measure training steps too")
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
    parser.add_argument("--threads", type=number, metavar="T", help="CPU threads of PyTorch")
    parser.add_argument(
        "--price-per-hour",
        type=_price,
        metavar="P",
        help="what an hour of this machine costs, in any currency: adds the cost of a million "
        "texts",
    )
    parser.add_argument("--seed", type=int, default=0, help="of lengths and weights (default 0)")
    parser.add_argument(
        "--time-limit",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds without progress before a case counts as hung (400 at least: a model may be "
        "compiled meanwhile)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write (default: runs/profile-TIME)"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="go on with an interrupted profile; its own settings apply",
    )
    parser.set_defaults(run=run)


def _named() -> str:
    return ", ".join(NAMES)


NAMES = (
    *("bert-tiny", "bert-base", "bert-large", "minilm-l3", "minilm-l6", "minilm-l12"),
    *("distilbert", "roberta-base", "modernbert-base", "esm2-8m", "esm2-35m", "vit-s-16"),
    "vit-b-16",
)
"""As ``flashmix.bench.profiling.catalogue`` has them, which is not imported for ``--help``."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from flashmix.bench import run_suite
    from flashmix.bench.store import RUN_FILE
    from flashmix.cli.report import print_summary, write_all
    from flashmix.cli.terminal import Terminal
    from flashmix.errors import ArgumentError

    if arguments.resume is not None and (arguments.out or arguments.model):
        raise ArgumentError("--resume already names the folder; leave MODEL and --out away")
    if arguments.resume is None and arguments.model is None:
        raise ArgumentError(f"name a MODEL: a folder, a hub id, or one of {_named()}")
    terminal = Terminal()
    out: Path = arguments.resume or arguments.out or default_folder("profile")
    try:
        grid = _grid(arguments)
        with progress_listener(terminal) as listener:
            run_suite(
                "profile",
                grid,
                out,
                threads=arguments.threads,
                time_limit=arguments.time_limit,
                resume=arguments.resume is not None,
                listener=listener,
            )
    except KeyboardInterrupt:
        begun = (out / RUN_FILE).exists()
        terminal.say(
            "\ninterrupted; finished cases are kept. Go on with:\n"
            f"  flashmix profile --resume {shlex.quote(str(out))}"
            if begun
            else "\ninterrupted before anything was measured"
        )
        return 130
    print_summary(terminal, out)
    write_all(terminal, out)
    return 0


def _grid(arguments: argparse.Namespace) -> Grid:
    from flashmix.bench import Grid
    from flashmix.bench.profiling.api import profile_grid

    if arguments.resume is not None:
        return Grid()
    return profile_grid(
        arguments.model,
        seq_len=arguments.seq_len,
        batch=arguments.batch,
        data=arguments.data,
        column=arguments.column,
        tokenizer=arguments.tokenizer,
        device=device_name(arguments.device),
        dtype=arguments.dtype,
        lengths=arguments.lengths,
        mixers=arguments.mixers,
        modes=arguments.modes,
        seq_lens=arguments.seq_lens,
        train=arguments.train,
        price_per_hour=arguments.price_per_hour,
        seed=arguments.seed,
    )

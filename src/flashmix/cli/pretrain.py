"""``flashmix pretrain``: masked-language-model pretraining from scratch, alike for every mixer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from flashmix.cli.training import add_common, experiment, run_command, settings

if TYPE_CHECKING:
    from flashmix.bench.training import Experiment

EPILOG = """\
examples:
  flashmix pretrain --data imdb_unsup --mixers attention,fnet --steps 5000 --out runs/pre
  flashmix pretrain --arch bert-mini --mixers "attention*2,fnet*2;" --seconds 600
  flashmix finetune --model runs/pre --task imdb --mixers attention,fnet
"""

FIELDS = ("corpus", "tokenizer", "steps", "check_every", "dropout")


def add_command(commands: Any) -> None:
    """Add ``pretrain`` to the command line."""
    parser = commands.add_parser(
        "pretrain",
        help="pretrain small encoders from scratch, alike for every mixer",
        description="Pretrain a BERT of a small size on text by hiding tokens, once for each "
        "mixer, so that all start fine-tuning alike.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch", default="bert-tiny", help="bert-tiny (default), -mini, -small or -medium"
    )
    parser.add_argument(
        "--corpus",
        default="imdb_unsup",
        help="imdb_unsup (default) or imdb_train; --data takes their names too",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        default="google-bert/bert-base-uncased",
        help="folder or hub id (default google-bert/bert-base-uncased)",
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="instead of --steps: as many as each model does in this time, its step time being "
        "measured alone beforehand",
    )
    parser.add_argument("--check-every", type=int, metavar="STEPS", help="validate and save")
    parser.add_argument("--dropout", type=float, metavar="P", help="default 0")
    parser.add_argument("--unpad", action="store_true", help=argparse.SUPPRESS)
    add_common(parser, seeds=1)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    return run_command(arguments, _experiment)


def _experiment(arguments: argparse.Namespace) -> Experiment:
    from flashmix.errors import ArgumentError
    from flashmix.tasks.pretraining import CORPORA, PretrainConfig

    if arguments.seconds is not None and arguments.steps is not None:
        raise ArgumentError("give --steps or --seconds, not both")
    if arguments.unpad:
        raise ArgumentError(
            "--unpad would remove nothing: rows of pretraining are filled with text to the last "
            "token; give it to flashmix finetune"
        )
    if arguments.data in CORPORA:  # the text by its name alone
        arguments.corpus, arguments.data = arguments.data, None
    config = PretrainConfig(arch=arguments.arch, **settings(arguments, FIELDS))
    return experiment(arguments, config, seconds=arguments.seconds)

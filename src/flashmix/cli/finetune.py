"""``flashmix finetune``: train a model with several mixers on a task, and weigh what each cost."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from flashmix.cli.training import add_common, experiment, numbers, run_command, settings

if TYPE_CHECKING:
    from flashmix.bench.training import Experiment

EPILOG = """\
The validation split is cut from the training data and picks the best epoch; the test set is read
once, at the end. A run's folder holds run.json, results.jsonl (a row for each model and seed),
costs.json, examples.json, report.md and a folder for each model: its weights as safetensors
(flashmix.from_pretrained reads them) and its TensorBoard logs. Nothing is lost on Ctrl-C or a kill:
--resume FOLDER goes on within the epoch.

examples:
  flashmix finetune --task digits --mixers attention,fnet --epochs 30
  flashmix finetune --model google-bert/bert-base-uncased --task imdb --mixers attention,local
  flashmix pretrain --arch bert-tiny --mixers "attention; spectral,attention" --out runs/pre
  flashmix finetune --model runs/pre --task imdb --mixers "attention; spectral,attention"
  torchrun --nproc-per-node 2 -m flashmix finetune --task digits --out runs/two
  torchrun --nproc-per-node 4 -m flashmix finetune --task imdb --sequence-parallel 2
  flashmix finetune --resume runs/finetune-20260101-120000
"""

FIELDS = ("tokenizer", "epochs", "val_share", "patience", "pooling", "sequence_parallel", "unpad")


def add_command(commands: Any) -> None:
    """Add ``finetune`` to the command line."""
    parser = commands.add_parser(
        "finetune",
        help="train a model with several mixers on a task: accuracy beside cost",
        description="Give a model other mixers, fine-tune each on a task with several seeds, and "
        "report accuracy beside training time, inference time and memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", choices=("imdb", "sst2", "digits"), help="what to learn")
    parser.add_argument(
        "--model",
        default="bert-tiny",
        help="a folder or hub id with safetensors, the folder of a flashmix pretrain run, or a "
        "blank bert-tiny (default), bert-mini, bert-small or bert-medium",
    )
    parser.add_argument("--tokenizer", metavar="NAME", help="default: the model's own")
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls"),
        help="what the head reads: the mean of the tokens (default), or [CLS]",
    )
    parser.add_argument(
        "--sequence-parallel",
        type=int,
        metavar="P",
        help="under torchrun: spread each sequence over P processes; the others share the batch",
    )
    parser.add_argument(
        "--unpad",
        action="store_true",
        help="remove padding before the first layer, so that all layers get real tokens alone",
    )
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--patience", type=int, metavar="N", help="stop N epochs after the best")
    parser.add_argument("--val-share", type=float, metavar="SHARE", help="default 0.1")
    parser.add_argument(
        "--lengths",
        type=numbers,
        default=(128, 256, 512),
        metavar="N,N",
        help="input lengths to time inference at; '' measures no costs",
    )
    add_common(parser, seeds=3)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    return run_command(arguments, _experiment)


def _experiment(arguments: argparse.Namespace) -> Experiment:
    from flashmix.errors import ArgumentError
    from flashmix.tasks.finetuning import FinetuneConfig

    if arguments.task is None:
        raise ArgumentError("name a --task: imdb, sst2 or digits")
    config = FinetuneConfig(
        task=arguments.task, model=arguments.model, **settings(arguments, FIELDS)
    )
    return experiment(arguments, config, lengths=arguments.lengths)

"""``flashmix swap``: a Hugging Face checkpoint with other mixers, saved."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmix.cli.terminal import Terminal

EPILOG = """\
examples:
  flashmix swap google-bert/bert-base-uncased --mixers fnet --out bert-fnet
  flashmix swap bert --mixers 'spectral*10,attention*2' --out bert-spectral
  flashmix swap bert --mixers 'local(window=64)' --out bert-local

then, in Python: model = flashmix.from_pretrained("bert-fnet")
"""


def add_command(commands: Any) -> None:
    """Add ``swap`` to the command line."""
    parser = commands.add_parser(
        "swap",
        help="give a Hugging Face encoder other mixers and save it",
        description="Replace the mixing of a Hugging Face encoder, save the result with its "
        "tokenizer, and print which pretrained parameters stay. The swapped model is to be "
        "fine-tuned: mixers of another kind start without what attention had learned.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, or a name on the hub")
    parser.add_argument(
        "--mixers", required=True, metavar="PATTERN", help="a mixer, or a pattern over layers"
    )
    parser.add_argument(
        "--unpad",
        action="store_true",
        help="the saved model removes padding before its first layer and puts it back after the "
        "last",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FOLDER", help="a folder that is not there yet"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from flashmix.cli.terminal import Terminal
    from flashmix.errors import ArgumentError
    from flashmix.hf import load, swap, swap_report

    out: Path = arguments.out
    if out.exists():
        raise ArgumentError(f"--out {out} exists; name a folder that is not there yet")
    model = swap(load(arguments.model), arguments.mixers, unpad=arguments.unpad or None)
    terminal = Terminal()
    terminal.say(str(swap_report(model)))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / out.name
        model.save_pretrained(folder)
        _copy_tokenizer(terminal, arguments.model, folder)
        folder.rename(out)
    terminal.say(f"saved in {out}; load it with flashmix.from_pretrained({str(out)!r})")
    return 0


def _copy_tokenizer(terminal: Terminal, model: str, folder: Path) -> None:
    """Save what turns text or images into the model's input beside it, where there is one."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError):
        terminal.say(f"no tokenizer or image processor in {model}; none saved")
        return
    processor.save_pretrained(folder)

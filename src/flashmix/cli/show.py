"""``flashmix show``: pictures of what a mixer does."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmix.cli.bench import number

if TYPE_CHECKING:
    from flashmix.cli.terminal import Terminal
    from flashmix.visualize import Input, Picture, Subject

EPILOG = """\
Writes each picture as SVG and PNG, and pictures.md and measured.json with what was measured.
weights      who attends to whom, by head (attention, local, topk, fourier)
impulse      what a unit impulse at each token does (fnet, spectral, sums of them)
influence    the norm of d y[i] / d x[j], of any mixer
filter       learned magnitude and phase, by mode and channel (spectral)
gains        weights over frequencies, by head (fourier)
spectrum     FFT magnitude of what enters and leaves each layer
heads        FFT magnitude of each head's values, against white noise

examples:
  flashmix show "local(window=16)"
  flashmix show spectral --train 1000             after 1,000 steps on handwritten digits
  flashmix show "fnet*2,attention" --dim 128 --seq-len 128
  flashmix show topk --text "the cat sat on the mat, and the dog sat on the cat"
  flashmix show --checkpoint models/my-encoder --text "a film to see twice"
  flashmix show fnet --checkpoint models/my-encoder --input imdb --seq-len 128
"""


def add_command(commands: Any) -> None:
    """Add ``show`` to the command line."""
    parser = commands.add_parser(
        "show",
        help="draw what a mixer does",
        description="Draw what a mixer does between tokens and to frequencies, on real images or "
        "text; each caption states what was measured.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "mixer",
        nargs="?",
        metavar="MIXER",
        help='a mixer or a pattern over layers: "local(window=16)", "fnet*2,attention"',
    )
    parser.add_argument("--dim", type=number, metavar="D", help="width (default 64)")
    parser.add_argument(
        "--heads", "--num-heads", type=number, metavar="H", help="heads (default: of width 16)"
    )
    parser.add_argument(
        "--seq-len", type=number, metavar="N", help="tokens (default: 64, or the text's own)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of untrained weights (default 0)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="folder of a Hugging Face encoder, swapped or not, whose layers are shown, or into "
        "whose hidden states MIXER is put; or a safetensors file with MIXER's weights",
    )
    parser.add_argument(
        "--train",
        type=number,
        metavar="STEPS",
        help="first train on scikit-learn's handwritten digits, for so many steps",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--text",
        action="append",
        metavar="TEXT",
        help="show it this text, a byte a token (with an encoder: its own tokens); repeatable",
    )
    what.add_argument(
        "--input",
        choices=("digits", "imdb", "noise"),
        help="images of handwritten digits (default), film reviews from FLASHMIX_DATA, or noise",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write (default: pictures/MIXER)"
    )
    parser.add_argument(
        "--format",
        type=lambda text: tuple(part.strip() for part in text.split(",")),
        default=("svg", "png"),
        metavar="F,F",
        help="svg, png or both (default)",
    )
    parser.add_argument(
        "--theme", choices=("light", "dark"), default="light", help="of the colours"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from flashmix.cli.terminal import Terminal
    from flashmix.errors import unknown_choice
    from flashmix.visualize import FORMATS, make_folder, write_captions, write_picture

    for one in arguments.format:
        if one not in FORMATS:
            raise unknown_choice("format", one, FORMATS)
    terminal = Terminal()
    subject = _subject(terminal, arguments)
    out = arguments.out or Path("pictures") / _folder(arguments)
    make_folder(out)
    written: list[Picture] = []
    for picture in subject.pictures():
        paths = write_picture(picture, out, arguments.format, arguments.theme)
        written.append(picture)
        terminal.print(", ".join(map(str, paths)), style="bold", soft_wrap=True)
        terminal.print(picture.caption + "\n")
    write_captions(written, out, arguments.format)
    terminal.say(f"captions: {out / 'pictures.md'}")
    return 0


def _subject(terminal: Terminal, arguments: argparse.Namespace) -> Subject:
    """What the arguments ask to see.

    Raises:
        ArgumentError: the arguments do not go together.
    """
    from flashmix.errors import ArgumentError
    from flashmix.visualize import mixer_subject, trained_subject

    path, mixer = arguments.checkpoint, arguments.mixer
    if path is not None and not path.exists():
        raise ArgumentError(f"--checkpoint {path} does not exist")
    if path is not None and path.is_dir():
        return _encoder_subject(arguments)
    if mixer is None:
        from flashmix.mixers import list_mixers

        raise ArgumentError(
            f"name a mixer ({', '.join(list_mixers())}), or give the folder of an encoder as "
            "--checkpoint"
        )
    dim = arguments.dim or 64
    heads = arguments.heads or (dim // 16 if dim % 16 == 0 else None)
    given = _given(arguments, dim)
    if arguments.train is None:
        return mixer_subject(
            mixer, given, dim=dim, num_heads=heads, seed=arguments.seed, weights=path
        )
    if path is not None:
        raise ArgumentError("--train and --checkpoint exclude each other; choose one")
    with _steps(terminal, f"training {mixer} on the digits", arguments.train) as beat:
        return trained_subject(
            mixer,
            given,
            steps=arguments.train,
            dim=dim,
            num_heads=heads,
            seed=arguments.seed,
            on_step=beat,
        )


def _encoder_subject(arguments: argparse.Namespace) -> Subject:
    from flashmix.errors import ArgumentError
    from flashmix.visualize import encoder_subject, imdb_reviews

    if arguments.train is not None or arguments.dim or arguments.heads:
        raise ArgumentError("an encoder's folder sets width, heads and weights; leave them away")
    if arguments.input in ("digits", "noise"):
        raise ArgumentError(f"an encoder reads text, not {arguments.input}; give --text")
    if arguments.text is None and arguments.input is None:
        raise ArgumentError("an encoder needs text: --text TEXT, or --input imdb")
    return encoder_subject(
        arguments.checkpoint,
        arguments.text or imdb_reviews(),
        seq_len=arguments.seq_len or (None if arguments.text else 128),
        mixers=arguments.mixer,
        seed=arguments.seed,
        noun="text" if arguments.text else "film review",
    )


def _given(arguments: argparse.Namespace, dim: int) -> Input:
    """What mixers by name are shown."""
    from flashmix.visualize import digit_images, imdb_reviews, text_bytes, white_noise

    if arguments.text:
        return text_bytes(arguments.text, arguments.seq_len)
    n = arguments.seq_len or 64
    if arguments.input == "imdb":
        return text_bytes(imdb_reviews(), n, "film review")
    if arguments.input == "noise":
        return white_noise(n, dim, seed=arguments.seed)
    return digit_images(n)


def _folder(arguments: argparse.Namespace) -> str:
    """A folder's name for what is shown: the mixer's and the checkpoint's, in plain letters."""
    parts = [arguments.mixer, arguments.checkpoint and arguments.checkpoint.resolve().stem]
    text = "-".join(part for part in parts if part)
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


@contextmanager
def _steps(terminal: Terminal, what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar with the time left where there is a terminal; yields what to call a step."""
    from flashmix.cli.terminal import progress_bar

    if not terminal.is_terminal:
        terminal.print(f"{what} for {total:,} steps")
        yield lambda: None
        return
    with progress_bar(terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)

"""What is shown to a mixer: real images, real text, or white noise as the control.

Shapes: B sequences, N tokens, D width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from flashmix.errors import ArgumentError, missing_extra
from flashmix.tasks.digits import TOKENS, load_digits

SEQUENCES = 32
"""Sequences over which spectra are averaged."""


Kind = Literal["pixels", "bytes", "noise"]


@dataclass(frozen=True, eq=False)
class Input:
    """Sequences for a model.

    Attributes:
        kind: what the values are.
        one, all: what the first and what all of them are, for captions.
        values: pixels, float [B, N, 1], byte values, int64 [B, N], or noise, float [B, N, D].
        labels: the tokens of the first sequence as text, or None where they are numbers.
    """

    kind: Kind
    one: str
    all: str
    values: Tensor
    labels: tuple[str, ...] | None = None


def digit_images(seq_len: int = TOKENS, count: int = SEQUENCES) -> Input:
    """Held-out images of handwritten digits, a pixel a token; longer sequences hold several.

    Raises:
        MissingDependencyError: scikit-learn, which ships the images, is not installed.
        ArgumentError: more tokens than all the images have.
    """
    images = load_digits().test_x
    each = -(-seq_len // TOKENS)
    count = min(count, len(images) // each)
    if not count:
        raise ArgumentError(
            f"digit_images: at most {len(images) * TOKENS} tokens are there, got {seq_len}"
        )
    values = images[: count * each].reshape(count, each * TOKENS, 1)[:, :seq_len]
    size = f"N = {seq_len} pixels"
    if each == 1:
        one, many = "an image of a handwritten digit", f"{count} images of handwritten digits"
    else:
        one = f"{each} images of handwritten digits in a row"
        many = f"{count} sequences of {one}"
    return Input("pixels", f"{one} ({size})", f"{many} ({size})", values)


def white_noise(seq_len: int, dim: int, count: int = SEQUENCES, seed: int = 0) -> Input:
    """Independent normal numbers, which prefer no frequency and no token: the control."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, seq_len, dim, generator=generator)
    size = f"N = {seq_len}"
    return Input(
        "noise", f"white noise ({size})", f"{count} sequences of white noise ({size})", values
    )


def text_bytes(texts: Sequence[str], seq_len: int | None = None, noun: str = "text") -> Input:
    """Texts as UTF-8 bytes, a byte a token, cut to ``seq_len`` or to the shortest of them.

    ``noun`` is what captions call a text.

    Raises:
        ArgumentError: no text, or one with fewer bytes than ``seq_len``.
    """
    encoded = [text.encode() for text in texts]
    shortest = min((len(text) for text in encoded), default=0)
    n = shortest if seq_len is None else seq_len
    if not 0 < n <= shortest:
        raise ArgumentError(
            f"text: needs at least {max(n, 1)} bytes, got one of {shortest}; "
            "give a longer text or a smaller --seq-len"
        )
    values = torch.tensor([list(text[:n]) for text in encoded])
    labels = tuple(chr(byte) if 32 < byte < 127 else "·" for byte in encoded[0][:n])
    size = f"N = {n} bytes"
    return Input(
        "bytes", f"a {noun} ({size})", f"{count_texts(len(texts), noun)} ({size})", values, labels
    )


def imdb_reviews(count: int = SEQUENCES, characters: int = 2_000) -> list[str]:
    """The first film reviews of at least ``characters`` (Maas et al. 2011, test part).

    Raises:
        ArgumentError: FLASHMIX_DATA names no folder with imdb_test.parquet.
        MissingDependencyError: duckdb, which reads it, is not installed.
    """
    folder = os.environ.get("FLASHMIX_DATA")
    path = Path(folder or "") / "imdb_test.parquet"
    if not folder or not path.is_file():
        raise ArgumentError(
            "the imdb reviews need imdb_test.parquet (columns text, label) in the folder that "
            "FLASHMIX_DATA names; or give --text, or --input digits"
        )
    try:
        import duckdb
    except ImportError:
        raise missing_extra("duckdb", "query", "reading parquet") from None
    rows = duckdb.execute(
        "SELECT text FROM read_parquet(?) WHERE length(text) >= ? LIMIT ?",
        [str(path), characters, count],
    ).fetchall()
    return [text.replace("<br />", " ") for (text,) in rows]


def count_texts(number: int, noun: str) -> str:
    """As captions say it: "a text", "32 texts"."""
    return f"a {noun}" if number == 1 else f"{number} {noun}s"

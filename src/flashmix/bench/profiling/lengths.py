"""How long a user's texts are, in tokens of the model, as the lengths of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashmix.errors import ArgumentError, shown
from flashmix.tasks.text import read_columns

SAMPLE = 2000
"""Texts that are tokenised, spread evenly over the file."""
SUFFIXES = (".parquet", ".csv", ".txt")


def read_texts(path: Path, column: str) -> list[str]:
    """The texts of a column of a parquet or CSV file, or the lines of a text file.

    Raises:
        ArgumentError: there is no such file or column, or no text in it.
        FlashmixError, MissingDependencyError: as :func:`flashmix.tasks.text.read_columns`.
    """
    if path.suffix not in SUFFIXES:
        raise ArgumentError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ArgumentError(f"there is no file {path}")
    try:
        if path.suffix == ".txt":
            texts = path.read_text(encoding="utf-8").splitlines()
        else:
            columns = read_columns(path)
            if column not in columns:
                raise ArgumentError(
                    f"{path} has no column {shown(column)}, only {', '.join(columns)}; name one "
                    "with --column"
                )
            texts = [str(text) for text in columns[column] if text is not None]
    except UnicodeDecodeError:
        raise ArgumentError(f"{path} is not UTF-8 text") from None
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ArgumentError(f"{path} holds no text")
    return texts


def count_tokens(tokenizer: Any, texts: Sequence[str], longest: int) -> list[int]:
    """Tokens of texts spread evenly over ``texts``, special ones included, cut at ``longest``."""
    count = min(SAMPLE, len(texts))
    picked = [texts[i * len(texts) // count] for i in range(count)]
    encoded = tokenizer(picked, truncation=True, max_length=longest, verbose=False)["input_ids"]
    return [max(1, len(ids)) for ids in encoded]


def typical_batch(lengths: Sequence[int], batch: int) -> tuple[int, ...]:
    """``batch`` lengths that lie evenly over ``lengths``: their quantiles, ascending."""
    ordered = sorted(lengths)
    return tuple(ordered[(2 * i + 1) * len(ordered) // (2 * batch)] for i in range(batch))


def describe(path: Path, lengths: Sequence[int], texts: int, longest: int) -> str:
    """A sentence of what was read."""
    ordered = sorted(lengths)
    quantiles = " / ".join(str(ordered[share * len(ordered) // 100]) for share in (5, 50, 95))
    cut = sum(length >= longest for length in ordered) / len(ordered)
    return (
        f"{path.name}: {len(ordered):,} of {texts:,} texts, {quantiles} tokens (5 %, median, 95 %)"
        f", {100 * cut:.0f} % of them cut at {longest:,}; the batch has their quantiles."
    )

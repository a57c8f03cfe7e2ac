"""Writes pictures to a folder, with what was measured beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from flashmix.bench.store import write_whole
from flashmix.errors import FlashmixError, unknown_choice
from flashmix.report import theme
from flashmix.report.pictures.picture import FORMATS, Picture

CAPTIONS_FILE = "pictures.md"
MEASURED_FILE = "measured.json"


def write_picture(
    picture: Picture, out: Path, formats: Sequence[str] = FORMATS, mode: theme.Mode = "light"
) -> list[Path]:
    """Write one picture into the folder ``out`` as each of ``formats``; returns the paths."""
    for one in formats:
        if one not in FORMATS:
            raise unknown_choice("format", one, FORMATS)
    paths = []
    for one in formats:
        path = out / f"{picture.name}.{one}"
        write_whole(path, picture.svg(mode) if one == "svg" else picture.png(mode))
        paths.append(path)
    return paths


def write_captions(pictures: Iterable[Picture], out: Path, formats: Sequence[str]) -> None:
    """Write every caption (pictures.md) and its figures, unrounded (measured.json)."""
    pictures = list(pictures)
    image = "svg" if "svg" in formats else formats[0]
    sections = [
        f"## {one.title}\n\n![{one.title}]({one.name}.{image})\n\n{one.caption}\n"
        for one in pictures
    ]
    write_whole(out / CAPTIONS_FILE, "# Pictures\n\n" + "\n".join(sections))
    measured = {one.name: {"title": one.title, **one.measured} for one in pictures}
    write_whole(out / MEASURED_FILE, json.dumps(measured, indent=1) + "\n")


def make_folder(out: Path) -> None:
    """Create ``out`` where it is missing.

    Raises:
        FlashmixError: it cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlashmixError(f"cannot write to {out}: {error.strerror}") from None

"""Draw the pictures of docs/guides/show.md: ``make pictures``.

Those of an encoder need FLASHMIX_DATA to name a folder with paraphrase-minilm-l3-v2 and
imdb_test.parquet; without it they are left as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from flashmix.bench.store import write_whole
from flashmix.visualize import (
    Picture,
    Subject,
    compare_weights,
    digit_images,
    encoder_subject,
    imdb_reviews,
    mixer_subject,
    trained_subject,
    write_picture,
)

OUT = Path(__file__).parents[1] / "docs" / "images"
ATTENTIONS = ("attention", "local(window=32)", "topk(topk=32)")
SENTENCE = "the cat sat on the mat because it was warm, and the dog lay beside it"


def pictures() -> Iterator[Picture]:
    """Every picture, under the name of its file."""
    yield renamed("attentions", compare_weights(ATTENTIONS, digit_images(128)))
    yield from chosen("fnet", mixer_subject("fnet", digit_images(), num_heads=4), "impulse")
    hybrid = mixer_subject("spectral+local(window=8)", digit_images(), num_heads=4)
    yield from chosen("hybrid", hybrid, "influence")
    trained = trained_subject("spectral*2", digit_images(), steps=1000, num_heads=4)
    wanted = ("layer-2-filter", "layer-2-impulse", "spectrum")
    yield from chosen("spectral", trained, *wanted)
    data = os.environ.get("FLASHMIX_DATA")
    if data:
        folder = Path(data) / "paraphrase-minilm-l3-v2"
        yield from chosen("encoder", encoder_subject(folder, [SENTENCE]), "layer-1-weights")
        reviews = encoder_subject(folder, imdb_reviews(), seq_len=128, noun="film review")
        yield from chosen("reviews", reviews, "spectrum", "heads")


def chosen(prefix: str, subject: Subject, *names: str) -> Iterator[Picture]:
    """Some pictures of a subject."""
    for picture in subject.pictures():
        if picture.name in names:
            yield renamed(f"{prefix}-{picture.name}", picture)


def renamed(name: str, picture: Picture) -> Picture:
    """The same picture for another file."""
    return replace(picture, name=name)


def main() -> None:
    """Write every picture, and what was measured."""
    torch.set_num_threads(1)  # sums in one order, whatever the machine's cores
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "measured.json"
    measured = json.loads(path.read_text()) if path.exists() else {}
    for picture in pictures():
        write_picture(picture, OUT, ("png",))
        measured[picture.name] = {"caption": picture.caption, **picture.measured}
        print(picture.name)
    dark = replace(compare_weights(ATTENTIONS, digit_images(128)), name="attentions-dark")
    write_picture(dark, OUT, ("png",), "dark")
    write_whole(path, json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()

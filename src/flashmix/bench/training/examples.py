"""Examples that one model gets right and another wrong, over all seeds of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from flashmix._files import write_whole
from flashmix.bench.store import read_rows
from flashmix.bench.training.jobs import LOGITS_FILE
from flashmix.bench.training.sources import slug, sources_of, tokenizer_of
from flashmix.tasks.checkpoint import read_weights
from flashmix.tasks.finetuning import FinetuneConfig, load_task

EXAMPLES_FILE = "examples.json"
SHOWN = 3
EXCERPT = 240


def write_examples(config: FinetuneConfig, out: Path) -> None:
    """Write examples.json: for every pair of patterns, what only one of them gets right.

    A pattern gets an example right where most of its seeds do. Shown are the examples on which the
    seeds of both agree most.
    """
    seeds: dict[str, list[int]] = {}
    for row in read_rows(out):
        if row["status"] == "ok":
            seeds.setdefault(row["mixers"], []).append(row["seed"])
    if len(seeds) < 2:
        return
    first = next(iter(seeds))
    source = sources_of(config, [first], seeds[first][0])[first]
    data = load_task(replace(config, device="cpu"), tokenizer_of(config, source))
    labels = data.test.labels
    right = {mixers: _share_right(out / slug(mixers), own, labels) for mixers, own in seeds.items()}
    pairs = []
    for index, one in enumerate(right):
        for other in list(right)[index + 1 :]:
            pairs.append(_pair(one, right[one], other, right[other], data.texts, labels.tolist()))
    content = {"classes": list(data.classes), "pairs": pairs}
    write_whole(out / EXAMPLES_FILE, json.dumps(content, indent=1) + "\n")


def _share_right(folder: Path, seeds: list[int], labels: Tensor) -> Tensor:
    """Share of the seeds that get each test example right, [n]."""
    hits = [
        (read_weights(folder / f"seed-{seed}" / LOGITS_FILE)["logits"].argmax(1) == labels)
        for seed in seeds
    ]
    return sum(hit.double() for hit in hits) / len(hits)  # type: ignore[return-value]


def _pair(
    one: str, a: Tensor, other: str, b: Tensor, texts: list[str], labels: list[int]
) -> dict[str, Any]:
    only = {one: (a > 0.5) & (b <= 0.5), other: (b > 0.5) & (a <= 0.5)}
    margin = {one: a - b, other: b - a}
    examples = []
    for name, chosen in only.items():
        found = chosen.nonzero().squeeze(1)
        best = found[margin[name][found].argsort(descending=True, stable=True)][:SHOWN]
        examples += [
            {"right": name, "index": i, "label": labels[i], "text": texts[i][:EXCERPT]}
            for i in best.tolist()
        ]
    return {
        "models": [one, other],
        "both_right": int(((a > 0.5) & (b > 0.5)).sum()),
        "only": {name: int(chosen.sum()) for name, chosen in only.items()},
        "neither": int(((a <= 0.5) & (b <= 0.5)).sum()),
        "examples": examples,
    }

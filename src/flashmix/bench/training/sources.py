"""Where each model of a fine-tuning run starts from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flashmix.bench.store import RUN_FILE, read_rows, read_run
from flashmix.errors import ArgumentError
from flashmix.tasks.encoders import ARCHS, VANILLA
from flashmix.tasks.finetuning import FinetuneConfig


def slug(mixers: str) -> str:
    """A pattern as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", mixers).strip("-")


def pretrained(folder: Path) -> bool:
    """Whether a folder holds a ``flashmix pretrain`` run."""
    return (folder / RUN_FILE).is_file() and read_run(folder)["suite"] == "pretrain"


def name_of(config: FinetuneConfig) -> str:
    """The model's name, without the folders that it lies in; of a pretraining run, its size."""
    folder = Path(config.model)
    if config.model not in ARCHS and pretrained(folder):
        return str(read_run(folder)["experiment"]["config"]["arch"])
    return folder.name if folder.is_dir() else config.model


def sources_of(config: FinetuneConfig, labels: Sequence[str], seed: int) -> dict[str, str]:
    """The model that each label (mixers or vanilla) starts from.

    That is ``config.model`` itself, unless it is the folder of a pretraining run: then the model
    that was pretrained there with the same mixers, with the same seed where there is one.

    Raises:
        ArgumentError: the pretraining run holds no such model.
    """
    folder = Path(config.model)
    if config.model in ARCHS or not pretrained(folder):
        return dict.fromkeys(labels, config.model)
    rows = [row for row in read_rows(folder) if row["status"] == "ok"]
    found = {}
    for label in labels:
        if label in VANILLA:
            found[label] = name_of(config)
            continue
        own = [row for row in rows if row["mixers"] == label]
        if not own:
            raise ArgumentError(
                f"{folder} holds no finished model with mixers {label!r}; it has "
                f"{', '.join(repr(row['mixers']) for row in rows) or 'none'}"
            )
        row = next((row for row in own if row["seed"] == seed), own[0])
        found[label] = str(folder / row["checkpoint"])
    return found


def tokenizer_of(config: FinetuneConfig, source: str) -> str:
    """The tokenizer's folder or hub id; "" for digits, which need none.

    Raises:
        ArgumentError: a blank model on text, and no tokenizer named.
    """
    if config.task == "digits":
        return ""
    if config.tokenizer:
        return config.tokenizer
    if source in ARCHS:
        raise ArgumentError(
            f"a blank {source} needs a vocabulary: pass --tokenizer a folder or hub id, for "
            "example google-bert/bert-base-uncased"
        )
    return source

"""The text tasks, and where their examples come from: parquet, CSV, folders of texts, or the hub.

``data`` is a folder; without one, the folder in the environment variable FLASHMIX_DATA where it
holds the task's files, else the hub.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flashmix.errors import ArgumentError, FlashmixError, missing_extra, unknown_choice

ENVIRONMENT = "FLASHMIX_DATA"


class Examples(NamedTuple):
    """Texts and, unless unlabelled, the class of each."""

    texts: list[str]
    labels: list[int] | None


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """A task: its classes, and the file of each split by hub and by folder.

    A folder's file is the first that is there of the given stems, with ``.parquet`` or ``.csv``.
    """

    name: str
    about: str
    classes: tuple[str, ...]
    hub: str
    hub_files: Mapping[str, str]
    stems: Mapping[str, tuple[str, ...]]


TEXT_TASKS = {
    "imdb": TextTask(
        name="imdb",
        about="50,000 film reviews, positive or negative (Maas et al. 2011)",
        classes=("negative", "positive"),
        hub="stanfordnlp/imdb",
        hub_files={
            split: f"plain_text/{split}-00000-of-00001.parquet"
            for split in ("train", "test", "unsupervised")
        },
        stems={
            "train": ("imdb_train", "train"),
            "test": ("imdb_test", "test"),
            "unsupervised": ("imdb_unsup", "unsupervised", "unsup"),
        },
    ),
    "sst2": TextTask(
        name="sst2",
        about="sentences of film reviews, positive or negative (Socher et al. 2013)",
        classes=("negative", "positive"),
        hub="stanfordnlp/sst2",
        hub_files={
            "train": "data/train-00000-of-00001.parquet",
            # The hub's test split has no labels.
            "test": "data/validation-00000-of-00001.parquet",
        },
        stems={"train": ("sst2_train", "train"), "test": ("sst2_test", "test")},
    ),
}

COLUMNS = ("text", "sentence")


def load_examples(task: str, split: str, data: Path | None = None) -> Examples:
    """The examples of a split ("train", "test", "unsupervised") of a text task.

    Raises:
        ArgumentError: no such task or split, or a folder without its file.
        FlashmixError: a file that does not hold what it should, or a download that failed.
        MissingDependencyError: pyarrow is not installed, and the file is parquet.
    """
    return _read(_locate(task, split, data), split, len(TEXT_TASKS[task].classes))


def fingerprint(task: str, split: str, data: Path | None = None) -> dict[str, Any]:
    """What tells whether the files of a split are still the same: "bytes", and their "sha256".

    Where they lie does not count. It raises as :func:`load_examples` does for files that are not
    there.
    """
    path = _locate(task, split, data)
    digest, size = hashlib.sha256(), 0
    for file in sorted(path.rglob("*.txt")) if path.is_dir() else [path]:
        content = file.read_bytes()
        size += len(content)
        if path.is_dir():
            digest.update(f"{file.relative_to(path)}\0{len(content)}\0".encode())
        digest.update(content)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _locate(task: str, split: str, data: Path | None) -> Path:
    """The file of a split, or the folder of its texts, wherever it is."""
    if task not in TEXT_TASKS:
        raise unknown_choice("text task", task, TEXT_TASKS)
    known = TEXT_TASKS[task]
    if split not in known.stems:
        raise unknown_choice(f"split of {task}:", split, known.stems)
    if data is not None:
        found = _find(known, split, data)
        if found is None:
            stems = " or ".join(known.stems[split])
            raise ArgumentError(
                f"{data} holds no {split} split of {task}: expected {stems} with .parquet or .csv, "
                "or aclImdb's folders"
            )
        return found
    shared = os.environ.get(ENVIRONMENT)
    found = _find(known, split, Path(shared)) if shared else None
    return found or _download(known, split)


def _find(task: TextTask, split: str, folder: Path) -> Path | None:
    """The file of a split, or the folder of its texts."""
    for stem in task.stems[split]:
        for suffix in (".parquet", ".csv"):
            if (path := folder / f"{stem}{suffix}").is_file():
                return path
    texts = {"train": "train", "test": "test", "unsupervised": "train/unsup"}[split]
    path = folder / texts
    inner = path if split == "unsupervised" else path / "pos"
    return path if inner.is_dir() else None


def _download(task: TextTask, split: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise missing_extra("huggingface-hub", "finetune", f"downloading {task.name}") from None
    try:
        return Path(hf_hub_download(task.hub, task.hub_files[split], repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FlashmixError(
            f"cannot download {task.hub} from the hub ({type(error).__name__}); pass --data FOLDER "
            f"or set {ENVIRONMENT} to a folder with {task.stems[split][0]}.parquet"
        ) from None


def _read(path: Path, split: str, classes: int) -> Examples:
    if path.is_dir():
        return _read_folder(path, split)
    columns = read_columns(path)
    name = next((name for name in COLUMNS if name in columns), None)
    if name is None:
        raise FlashmixError(f"{path} has no column {' or '.join(COLUMNS)}, only {list(columns)}")
    texts = [str(text) for text in columns[name]]
    if split == "unsupervised":
        return Examples(texts, None)
    if "label" not in columns:
        raise FlashmixError(f"{path} has no column label, only {list(columns)}")
    try:
        labels = [int(label) for label in columns["label"]]
    except (TypeError, ValueError):
        labels = [-1]
    if not texts or min(labels) < 0 or max(labels) >= classes:
        raise FlashmixError(f"{path}: every label must be a class from 0 to {classes - 1}")
    return Examples(texts, labels)


def read_columns(path: Path) -> dict[str, list[Any]]:
    """The columns of a parquet file, or of a CSV file with a heading.

    Raises:
        FlashmixError: it is not parquet.
        MissingDependencyError: it is parquet, and pyarrow is not installed.
    """
    return _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "finetune", f"reading {path.name}") from None
    try:
        columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    except pa.ArrowInvalid as error:
        raise FlashmixError(f"{path} is not parquet: {error}") from None
    return columns


def _read_csv(path: Path) -> dict[str, list[Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _read_folder(path: Path, split: str) -> Examples:
    """The aclImdb layout: a text a file, in pos/ and neg/, or all in unsup/."""

    def texts(folder: Path) -> Iterator[str]:
        for file in sorted(folder.glob("*.txt")):
            yield file.read_text(encoding="utf-8")

    if split == "unsupervised":
        return Examples(list(texts(path)), None)
    negative, positive = list(texts(path / "neg")), list(texts(path / "pos"))
    return Examples(negative + positive, [0] * len(negative) + [1] * len(positive))

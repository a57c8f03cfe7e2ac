"""Rows of fine-tuning: what each model reached, and what it cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flashmix.bench.store import Row


def is_finetuning(row: Row) -> bool:
    """Whether ``row`` tells of a model fine-tuned on a task rather than of a timed case."""
    return "task" in row and "mixers" in row


def accuracy(row: Row) -> float | None:
    """Accuracy on the test set, or on the validation set where the row has no other."""
    for name in ("test_accuracy", "val_accuracy"):
        if row.get(name) is not None:
            return float(row[name])
    return None


@dataclass(frozen=True)
class Outcome:
    """A model with its mixers on a task, over seeds; ``ok`` and ``failed`` are its rows."""

    task: str
    model: str
    mixers: str
    ok: tuple[Row, ...]
    failed: tuple[Row, ...]

    def values(self, get: str | Callable[[Row], float | None]) -> list[float]:
        """The values that the finished seeds have."""
        read = get if callable(get) else lambda row: row.get(get)
        return [float(value) for row in self.ok if (value := read(row)) is not None]

    def mean(self, get: str | Callable[[Row], float | None]) -> float | None:
        """The mean over seeds, or None where no seed has a value."""
        values = self.values(get)
        return statistics.fmean(values) if values else None


def outcomes(rows: Iterable[Row]) -> list[Outcome]:
    """The fine-tuned models, in the order of the rows."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if is_finetuning(row):
            key = (str(row["task"]), model_name(row), mixers_name(row))
            groups.setdefault(key, []).append(row)
    return [
        Outcome(
            *key,
            tuple(row for row in group if row.get("status", "ok") == "ok"),
            tuple(row for row in group if row.get("status", "ok") != "ok"),
        )
        for key, group in groups.items()
    ]


def model_name(row: Row) -> str:
    """The model without the folders it lies in."""
    return str(row.get("model") or "model").rstrip("/").rpartition("/")[2]


def mixers_name(row: Row) -> str:
    """The mixers by layer, as text."""
    mixers = row["mixers"]
    return mixers if isinstance(mixers, str) else ",".join(map(str, mixers))


def settings(found: Sequence[Outcome]) -> list[tuple[str, str]]:
    """The (task, model) pairs, in order."""
    return list(dict.fromkeys((one.task, one.model) for one in found))

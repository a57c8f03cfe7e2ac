"""Trained and fine-tuned models: what each reached, what it cost, its distance from attention."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flashmix.bench.stats import Interval, mean_interval
from flashmix.bench.store import Row

BASE = "attention"


def is_finetuning(row: Row) -> bool:
    """Whether ``row`` is of a model trained on a task rather than of a timed case."""
    return "task" in row and "mixers" in row


def accuracy(row: Row) -> float | None:
    """Accuracy on the test set, or on the validation set where the row has no other."""
    for name in ("test_accuracy", "val_accuracy"):
        if row.get(name) is not None:
            return float(row[name])
    return None


def model_name(row: Row) -> str:
    """The model without the folders it lies in."""
    return str(row.get("model") or "model").rstrip("/").rpartition("/")[2]


def mixers_name(row: Row) -> str:
    """The mixers by layer, as text."""
    mixers = row["mixers"]
    return mixers if isinstance(mixers, str) else ",".join(map(str, mixers))


@dataclass(frozen=True)
class Outcome:
    """A model with its mixers on a task, over seeds; ``ok`` and ``failed`` are its rows."""

    task: str
    model: str
    mixers: str
    ok: tuple[Row, ...]
    failed: tuple[Row, ...]
    asked: int
    """Seeds that there are rows of, of these mixers or others."""

    @property
    def seeds(self) -> str:
        """How many seeds finished, and of how many where some did not."""
        return finished_of(len(self.ok), self.asked)

    def values(self, get: str | Callable[[Row], float | None]) -> list[float]:
        """The values that the finished seeds have."""
        read = get if callable(get) else lambda row: row.get(get)
        return [float(value) for row in self.ok if (value := read(row)) is not None]

    def mean(self, get: str | Callable[[Row], float | None]) -> float | None:
        """The mean over seeds, or None where no seed has a value."""
        values = self.values(get)
        return statistics.fmean(values) if values else None

    def interval(self, name: str) -> Interval | None:
        """The mean over seeds with its 95 % interval, or None where no seed has a value."""
        values = self.values(name)
        return mean_interval(values) if values else None


def outcomes(rows: Iterable[Row]) -> list[Outcome]:
    """The fine-tuned models, in the order of the rows."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    tuned = [row for row in rows if is_finetuning(row)]
    for row in tuned:
        key = (str(row["task"]), model_name(row), mixers_name(row))
        groups.setdefault(key, []).append(row)
    asked = len({row.get("seed") for row in tuned})
    return [
        Outcome(
            *key,
            tuple(row for row in group if row.get("status", "ok") == "ok"),
            tuple(row for row in group if row.get("status", "ok") != "ok"),
            asked,
        )
        for key, group in groups.items()
    ]


def finished_of(done: int, asked: int) -> str:
    """``done`` as a count, "2 of 3" where more were asked for."""
    return str(done) if done == asked else f"{done} of {asked}"


def finished(rows: Iterable[Row]) -> list[Outcome]:
    """The fine-tuned models of which a seed finished; of a seed trained twice, the last row."""
    return [model for model in outcomes(latest(rows)) if model.ok]


def settings(found: Sequence[Outcome]) -> list[tuple[str, str]]:
    """The (task, model) pairs, in order."""
    return list(dict.fromkeys((model.task, model.model) for model in found))


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each pattern and seed: a training that failed may have been repeated."""
    return list({(row["mixers"], row["seed"]): row for row in rows}.values())


def in_order(run: dict[str, Any], rows: Sequence[Row]) -> list[Row]:
    """The rows as the run lists its patterns and seeds, not as they ended."""
    order = {mixers: place for place, mixers in enumerate(run["experiment"]["mixers"])}
    return sorted(rows, key=lambda row: (order[row["mixers"]], row["seed"]))


def paired(model: Outcome, base: Outcome) -> Interval | None:
    """Difference in test accuracy, seed by seed."""
    theirs = {row["seed"]: row["test_accuracy"] for row in base.ok}
    differences = [
        row["test_accuracy"] - theirs[row["seed"]] for row in model.ok if row["seed"] in theirs
    ]
    return mean_interval(differences) if differences else None


def against_base(rows: Sequence[Row]) -> list[tuple[Outcome, Outcome, Interval]]:
    """Each pattern, attention, and the difference in test accuracy between them."""
    found = finished(rows)
    base = next((model for model in found if model.mixers == BASE), None)
    if base is None or not base.values("test_accuracy"):
        return []
    others = [model for model in found if model is not base]
    return [(model, base, gap) for model in others if (gap := paired(model, base))]


@dataclass(frozen=True)
class Training:
    """What a mixer reached on the digits, over seeds."""

    mixer: str
    accuracies: tuple[float, ...]
    steps: tuple[int, ...]
    seconds: float
    params: int
    failed: tuple[str, ...]
    rows: tuple[Row, ...] = ()

    @property
    def seeds(self) -> str:
        """How many seeds finished, and of how many where some did not."""
        done = len(self.accuracies)
        return finished_of(done, done + len(self.failed))


def trainings(rows: Iterable[Row]) -> list[Training]:
    """The mixers trained on the digits, in the order of the rows."""
    by_mixer: dict[str, list[Row]] = {}
    for row in rows:
        if row["direction"] == "train":
            by_mixer.setdefault(row["mixer"], []).append(row)
    found = []
    for mixer, group in by_mixer.items():
        ok = [row for row in group if row["status"] == "ok"]
        found.append(
            Training(
                mixer=mixer,
                accuracies=tuple(row["accuracy"] for row in ok),
                steps=tuple(row["steps"] for row in ok),
                seconds=max((row["train_seconds"] for row in ok), default=math.nan),
                params=ok[0]["params"] if ok else 0,
                failed=tuple(row["status"] for row in group if row["status"] != "ok"),
                rows=tuple(group),
            )
        )
    return found

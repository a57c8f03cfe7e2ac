"""Rows of fine-tuning: what each model reached, and what it cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flashmix.bench.store import Row
from flashmix.report.tables import Cell, Section, Table, number


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


def _spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Mean and, where seeds differ, the lowest and the highest; whole numbers in full."""
    if not values:
        return "-"
    if len(set(values)) == 1 and scale == 1 and float(values[0]).is_integer():
        return f"{values[0]:,.0f}"
    found = [scale * value for value in (statistics.fmean(values), min(values), max(values))]
    mean, low, high = map(number, found)
    return mean if low == high else f"{mean} ({low} to {high})"


def finetuning_sections(rows: Sequence[Row]) -> list[Section]:
    """A table for each task and model: accuracy beside training and inference time."""
    found = outcomes(rows)
    return [
        _section(task, model, [one for one in found if (one.task, one.model) == (task, model)])
        for task, model in settings(found)
    ]


def _section(task: str, model: str, group: Sequence[Outcome]) -> Section:
    body = []
    for one in group:
        failed = ", ".join(str(row["status"]) for row in one.failed)
        body.append(
            [
                one.mixers,
                *(
                    Cell(_spread(one.values(get), scale), *one.ok)
                    for get, scale in (
                        ("test_accuracy", 100),
                        ("val_accuracy", 100),
                        ("f1", 100),
                        ("train_seconds", 1),
                        ("infer_ms", 1),
                        ("peak_memory_mb", 1),
                        ("params", 1),
                    )
                ),
                f"{len(one.ok)} ok" + (f", {failed}" if failed else ""),
            ]
        )
    columns = [
        "mixers",
        "test accuracy (%)",
        "validation accuracy (%)",
        "F1 (%)",
        "training (s)",
        "inference (ms)",
        "peak memory (MB)",
        "parameters",
        "seeds",
    ]
    empty = [i for i in range(1, 8) if all(line[i] == "-" for line in body)]
    keep = [i for i in range(len(columns)) if i not in empty]
    return Section(
        f"{task}, {model}",
        ["Mean over seeds, with the lowest and the highest."],
        Table([columns[i] for i in keep], [[line[i] for i in keep] for line in body]),
    )


def finetuning_statements(rows: Sequence[Row]) -> list[str]:
    """Which mixers part from attention with every seed, and at what cost."""
    found = outcomes(rows)
    sentences = []
    for task, model in settings(found):
        group = [one for one in found if (one.task, one.model) == (task, model)]
        base = next((one for one in group if set(one.mixers.split(",")) == {"attention"}), None)
        if base is None or not base.values(accuracy):
            continue
        sentences += [
            _against(one, base) for one in group if one is not base and one.values(accuracy)
        ]
    return sentences


def _against(one: Outcome, base: Outcome) -> str:
    ours, theirs = one.values(accuracy), base.values(accuracy)
    verdict = "is not parted from"
    if min(ours) > max(theirs):
        verdict = "is above"
    if max(ours) < min(theirs):
        verdict = "is below"
    seeds = min(len(ours), len(theirs))
    if seeds == 1:
        verdict = "is, by one seed alone, not parted from"
    costs = []
    for name, what in (("infer_ms", "inference"), ("train_seconds", "training")):
        mine, base_value = one.mean(name), base.mean(name)
        if mine and base_value:
            costs.append(f"{what} {number(base_value / mine)}x as fast")
    return (
        f"{one.task}, {one.model}: {one.mixers} {verdict} attention in accuracy, "
        f"{number(100 * statistics.fmean(ours))} % against "
        f"{number(100 * statistics.fmean(theirs))} % ({seeds} "
        f"{'seed' if seeds == 1 else 'seeds, every one'})"
        + (f"; {', '.join(costs)}." if costs else ".")
    )

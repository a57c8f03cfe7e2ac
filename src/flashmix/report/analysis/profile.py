"""A profile's rows: what is compared with what, and what they say to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flashmix.bench.case import MODE_LABELS, BenchmarkCase, lengths_of
from flashmix.bench.stats import Interval
from flashmix.bench.store import Row
from flashmix.report.analysis.models import VANILLA
from flashmix.report.analysis.timings import Crossover, find_crossover, time_ratio
from flashmix.report.analysis.training import model_name

EAGER = "vanilla eager"
FREE = "mixing free"
INT8 = MODE_LABELS["int8"]
NAMES = {
    "inference": "Inference",
    "inference_b1": "Inference, a batch of one",
    "train_step": "Training step",
}
WORTH = 1.25
"""Times as fast, from which a swap is said to have something to give."""


@dataclass(frozen=True)
class Group:
    """Rows timed in turn: one direction, shape and distribution of lengths.

    Attributes:
        rows: all of them, those that failed too.
        base: the vanilla model, which all are compared with; None where it failed.
    """

    rows: tuple[Row, ...]
    base: Row | None

    @property
    def direction(self) -> str:
        """Of all of them."""
        return str(self.rows[0]["direction"])

    @property
    def ok(self) -> list[Row]:
        """Those that were timed."""
        return [row for row in self.rows if row["status"] == "ok"]

    @property
    def case(self) -> BenchmarkCase:
        """The first one's."""
        return BenchmarkCase.from_dict(self.rows[0])

    @property
    def shape(self) -> str:
        """In words: "bert-base [8, 128], 38 % padding"."""
        case = self.case
        padding = f", {100 * self.padding:.0f} % padding" if self.padding > 0 else ""
        return f"{model_name(self.rows[0])} [{case.batch}, {case.seq_len}]{padding}"

    @property
    def name(self) -> str:
        """What was timed, in words."""
        return f"{NAMES[self.direction]}, {self.shape}"

    @property
    def padding(self) -> float:
        """The share of the batch that is padding."""
        case = self.case
        return 1.0 - float(lengths_of(case).sum()) / (case.batch * case.seq_len)

    def speed(self, row: Row) -> Interval | None:
        """How many times as fast as the vanilla model."""
        if self.base is None or row["status"] != "ok" or row is self.base:
            return None
        return time_ratio(self.base, row)

    def named(self, label: str) -> Row | None:
        """The row of a label, where it was timed."""
        return next((row for row in self.ok if row["label"] == label), None)

    @property
    def swaps(self) -> list[Row]:
        """The patterns, in eager PyTorch, padded and unpadded."""
        return [row for row in self.ok if is_swap(row) and row["mode"] == "eager"]

    @property
    def ceiling(self) -> Row | None:
        """The fastest with free mixing: what no swap can pass."""
        return fastest(row for row in self.ok if row["impl"] == "free")

    @property
    def untrained(self) -> Row | None:
        """The fastest of what keeps the weights as they are: nothing is to be trained for it."""
        return fastest(row for row in self.ok if not needs_training(row))

    @property
    def best_swap(self) -> Row | None:
        """The fastest pattern, however it runs."""
        return fastest(row for row in self.ok if is_swap(row))


def is_swap(row: Row) -> bool:
    """Whether a row is of a model with other mixers; attention swapped in is the model's own."""
    return row["impl"] == "auto" and row["mixer"] != "attention"


def needs_training(row: Row) -> bool:
    """Whether the model's outputs are others until it is trained."""
    return is_swap(row) or row["impl"] == "free"


def fastest(rows: Iterable[Row]) -> Row | None:
    """The row of the least median time."""
    return min(rows, key=lambda row: float(row["median_ms"]), default=None)


def groups(rows: Sequence[Row]) -> list[Group]:
    """The rows of suite ``profile`` by what was timed in turn, in their order."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.get("suite") == "profile":
            found.setdefault(BenchmarkCase.from_dict(row).group, []).append(row)
    return [Group(tuple(sorted(m, key=_rank)), _base(m)) for m in found.values()]


def _rank(row: Row) -> int:
    """The vanilla models first, then what needs no training, free mixing, and the swaps."""
    if row["label"] == VANILLA:
        return 0
    if is_swap(row):
        return 4
    if row["impl"] == "free":
        return 3
    return 1 if row["mode"] == "eager" else 2


def _base(rows: Sequence[Row]) -> Row | None:
    """The vanilla SDPA model; the eager one where transformers has no other for the model."""
    labels = [row["label"] for row in rows]
    label = VANILLA if VANILLA in labels else EAGER
    return next((row for row in rows if row["label"] == label and row["status"] == "ok"), None)


def compared(rows: Sequence[Row]) -> list[Group]:
    """The groups with patterns and alternatives: the profiled shape, a batch of one, training."""
    return [group for group in groups(rows) if any(row["mode"] == "compile" for row in group.rows)]


def by_length(rows: Sequence[Row]) -> list[Group]:
    """The groups of full batches that show how the ceiling grows with N, ascending."""
    found = [
        group
        for group in groups(rows)
        if group.direction == "inference" and group.case.lengths == "full"
    ]
    return sorted(found, key=lambda group: group.case.seq_len)


def ceiling_passes(rows: Sequence[Row], label: str, times: float = 1.0) -> Crossover:
    """From which N free mixing is ``times`` as fast as ``label`` or faster, in full batches."""
    ratios = []
    for group in by_length(rows):
        free, other = group.named(FREE), group.named(label)
        if free is not None and other is not None:
            ratio = time_ratio(other, free)
            bounds = (bound / times for bound in (ratio.value, ratio.low, ratio.high))
            ratios.append((group.case.seq_len, Interval(*bounds)))
    return find_crossover(ratios)


def texts_per_hour(row: Row) -> float:
    """Texts, or pictures, that a row's model takes in an hour."""
    return float(row["batch"]) * 3.6e6 / float(row["median_ms"])

"""Suite swap: a classifier with each mixer, relative to both vanilla models."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis.timings import FUSED, NAIVE, Sweep
from flashmix.report.sections.claims import Published
from flashmix.report.tables import Section, Table


def _published(direction: str, device: str, saved: float) -> Published:
    """A share of time saved, at a length the study does not state; checked at 256 tokens."""
    return Published(
        source="swap study",
        label="fnet",
        seq_len=256,
        times=round(1 / (1 - saved), 2),
        direction=direction,
        subject="encoder",
        device=device,
    )


PUBLISHED = (
    _published("forward", "cpu", 0.43),
    _published("train_step", "cpu", 0.33),
    _published("forward", "cuda", 0.24),
    _published("train_step", "cuda", 0.09),
)


def sections(rows: Sequence[Row]) -> list[Section]:
    """Inference and training step of the classifier, relative to both vanilla models."""
    found = []
    for direction, name in (("forward", "Inference"), ("train_step", "Training step")):
        sweep = Sweep(rows, direction)
        for n in sweep.seq_lens:
            body = []
            for label in sweep.labels:
                row = sweep.row(label, n)
                if row is None or row["status"] != "ok":
                    body.append([label, tables.status_cell(row), "-", "-", "-", "-"])
                    continue
                body.append(
                    [
                        label,
                        tables.time_cell(row),
                        tables.speed_cell(row, sweep.row(NAIVE, n)),
                        tables.speed_cell(row, sweep.row(FUSED, n)),
                        tables.memory_cell(row),
                        tables.params_cell(row),
                    ]
                )
            if body:
                columns = ["mixer", "time (ms)", "vs eager", "vs fused", "peak MB", "parameters"]
                found.append(Section(f"{name}, {n:,} tokens", table=Table(columns, body)))
    return found

"""Suite swap: a classifier with each mixer, relative to both vanilla models."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis import FUSED, NAIVE, Sweep
from flashmix.report.tables import Section, Table


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

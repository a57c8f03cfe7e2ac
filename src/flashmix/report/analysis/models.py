"""Whole encoders: which rows are compared with each other."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.case import BenchmarkCase
from flashmix.bench.store import Row

VANILLA = "vanilla SDPA"


def vanilla(rows: Sequence[Row], row: Row) -> Row | None:
    """The vanilla SDPA model measured in turn with ``row``, padded and called alike."""
    if not row.get("model"):
        return None
    group = BenchmarkCase.from_dict(row).group
    alike = (
        one
        for one in rows
        if one.get("model")
        and one["label"] == VANILLA
        and one["status"] == "ok"
        and BenchmarkCase.from_dict(one).group == group
    )
    return next(alike, None)


def model_shape(row: Row) -> str:
    """In words: "bert-base [32, 512], padded, compile"."""
    padded = ", padded" if row["lengths"] == "uniform" else ""
    mode = "" if row["mode"] == "eager" else f", {row['mode']}"
    return f"{row['model']} [{row['batch']}, {row['seq_len']}]{padded}{mode}"

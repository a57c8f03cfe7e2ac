"""Measured times that ``impl="auto"`` chooses by.

``measured.json`` beside this file holds, per kind of GPU, op and dtype, the median time of each
implementation at a few shapes, and names the committed run that they were taken from. A case goes
by the measured one nearest in the logarithm of its sizes; one out of reach of all counts as
unmeasured.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashmix.ops._compile import constant_in_graphs

TABLE = Path(__file__).with_name("measured.json")

# How many times larger or smaller than the measured size a case may be.
_REACH = {
    "batch": 64,
    "num_heads": 8,
    "seq_len": 8,
    "dim": 4,
    "modes": 2,
    "window": 2,
    "topk": 2,
}


@dataclass(frozen=True)
class Measurement:
    """One measured case: its sizes, and each implementation's median time."""

    gpu: str
    sizes: Mapping[str, int]
    milliseconds: Mapping[str, float]
    run: str

    def __str__(self) -> str:
        times = ", ".join(f"{name} {ms:.3g} ms" for name, ms in self.milliseconds.items())
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        return f"{times} measured on {self.gpu} at {sizes} ({self.run})"


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    return table


@functools.cache
def _measurements(gpu: str, op: str, dtype: str) -> tuple[Measurement, ...]:
    rows = _table().get("gpus", {}).get(gpu, {}).get(op, {}).get(dtype, [])
    run = _table().get("run", "")
    return tuple(Measurement(gpu, row["sizes"], row["ms"], run) for row in rows)


@functools.lru_cache(maxsize=4096)
def _nearest(
    gpu: str, op: str, dtype: str, sizes: tuple[tuple[str, int], ...]
) -> Measurement | None:
    wanted = dict(sizes)

    def factors(row: Measurement) -> dict[str, float]:
        return {name: abs(math.log(max(1, wanted[name]) / row.sizes[name])) for name in wanted}

    rows = [
        row
        for row in _measurements(gpu, op, dtype)
        if set(row.sizes) == set(wanted)
        and all(factor <= math.log(_REACH[name]) for name, factor in factors(row).items())
    ]
    return min(rows, key=lambda row: sum(factors(row).values())) if rows else None


@functools.cache
def _gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def stands_for(dtype: torch.dtype) -> str:
    """The dtype whose measurements count for ``dtype``: both half types move the same bytes."""
    return str(torch.bfloat16 if dtype == torch.float16 else dtype).removeprefix("torch.")


def nearest(
    op: str, sizes: tuple[tuple[str, int], ...], dtype: torch.dtype, device: torch.device
) -> Measurement | None:
    """The measured case nearest to this one on its kind of GPU; None where there is none."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return _nearest(_gpu_name(device), op, stands_for(dtype), sizes)


@constant_in_graphs
def fastest(
    op: str,
    sizes: tuple[tuple[str, int], ...],
    dtype: torch.dtype,
    device: torch.device,
    names: tuple[str, ...],
) -> str | None:
    """The fastest of ``names`` at the measured case nearest to this one, where one is measured."""
    row = nearest(op, sizes, dtype, device)
    if row is None:
        return None
    measured = [name for name in names if name in row.milliseconds]
    return min(measured, key=row.milliseconds.__getitem__) if measured else None

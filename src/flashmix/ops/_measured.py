"""Measured times that ``impl="auto"`` chooses by.

``measured.json`` beside this file holds, per machine, op and dtype, the median time of each
implementation at a few shapes, and names the committed run that each op's were taken from. The
table of the same form that ``flashmix tune`` wrote here (``_user_table``) comes first. A case goes
by the measured one nearest in the logarithm of its sizes, among lengths of its kind: a length with
a large prime factor says nothing of others. One out of reach of all counts as unmeasured.
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

from flashmix.ops import _user_table
from flashmix.ops._compile import constant_in_graphs
from flashmix.ops._cpu.smooth import smooth
from flashmix.ops._machine import device_name

TABLE = Path(__file__).with_name("measured.json")

# How many times larger or smaller than the measured size a case may be.
_REACH = {
    "batch": 64,
    "seq_len": 8,
    "dim": 4,
    "modes": 8,
    "window": 4,
    "topk": 2,
}


@dataclass(frozen=True)
class Measurement:
    """One measured case: its sizes, and each implementation's median time."""

    machine: str
    sizes: Mapping[str, int]
    milliseconds: Mapping[str, float]
    run: str

    def __str__(self) -> str:
        times = ", ".join(f"{name} {ms:.3g} ms" for name, ms in self.milliseconds.items())
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        return f"{times} from call to result, measured on {self.machine} at {sizes} ({self.run})"


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    return table


def _tables(op: str) -> tuple[tuple[dict[str, Any], str], ...]:
    """The machines of each table and where its times of an op are from, the user's first."""
    user, committed = _user_table.read(), _table()
    return (
        (user.get("machines", {}), str(_user_table.path()) if user else ""),
        (committed.get("gpus", {}), committed.get("runs", {}).get(op, {}).get("folder", "")),
    )


@functools.cache
def _measurements(machine: str, op: str, dtype: str) -> tuple[tuple[Measurement, ...], ...]:
    """What each table has."""
    return tuple(
        tuple(
            Measurement(machine, row["sizes"], row["ms"], run)
            for row in machines.get(machine, {}).get(op, {}).get(dtype, [])
        )
        for machines, run in _tables(op)
    )


def _compared(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes as they tell times apart: of an attention, its sequences of one head, and their width.

    So [6, 1, N, 64] stands beside [1, 6, N, 64].
    """
    compared = dict(sizes)
    if heads := compared.pop("num_heads", 0):
        compared["batch"] *= heads
        compared["dim"] //= heads
    return compared


@functools.lru_cache(maxsize=4096)
def _nearest(
    machine: str, op: str, dtype: str, sizes: tuple[tuple[str, int], ...]
) -> Measurement | None:
    asked = dict(sizes)
    wanted = _compared(asked)

    def kind(sizes: Mapping[str, int]) -> bool:
        """Fourier transforms tell lengths apart, attentions do not."""
        return "num_heads" in sizes or smooth(sizes["seq_len"])

    def factors(row: Measurement) -> dict[str, float]:
        there = _compared(row.sizes)
        return {name: abs(math.log(max(1, wanted[name]) / there[name])) for name in wanted}

    def alike(row: Measurement) -> bool:
        return (
            set(row.sizes) == set(asked)
            and kind(row.sizes) == kind(asked)
            and all(factor <= math.log(_REACH[name]) for name, factor in factors(row).items())
        )

    for table in _measurements(machine, op, dtype):
        if rows := [row for row in table if alike(row)]:
            return min(rows, key=lambda row: sum(factors(row).values()))
    return None


def stands_for(dtype: torch.dtype) -> str:
    """The dtype whose measurements count for ``dtype``: both half types move the same bytes."""
    return str(torch.bfloat16 if dtype == torch.float16 else dtype).removeprefix("torch.")


def nearest(
    op: str,
    sizes: tuple[tuple[str, int], ...],
    dtype: torch.dtype,
    device: torch.device,
    machine: str | None,
) -> Measurement | None:
    """The measured case nearest to this one on its machine; None where there is none.

    ``machine`` names another machine than this one.
    """
    machine = machine or device_name(device)
    return None if machine is None else _nearest(machine, op, stands_for(dtype), sizes)


@constant_in_graphs
def known(op: str, dtype: torch.dtype, device: torch.device, machine: str | None = None) -> bool:
    """Whether anything of this op was measured on this machine, or on the one named."""
    machine = machine or device_name(device)
    return machine is not None and any(_measurements(machine, op, stands_for(dtype)))


@constant_in_graphs
def fastest(
    op: str,
    sizes: tuple[tuple[str, int], ...],
    dtype: torch.dtype,
    device: torch.device,
    machine: str | None,
    names: tuple[str, ...],
    grows: tuple[str | None, ...],
) -> str | None:
    """The fastest of ``names`` at the measured case nearest to this one, where one is measured.

    ``grows`` holds, for each of them, the option that its time may grow in proportion to: where
    that is larger here than it was measured, so is the time.
    """
    row = nearest(op, sizes, dtype, device, machine)
    if row is None:
        return None
    wanted = dict(sizes)
    times = {
        name: row.milliseconds[name] * (max(1.0, wanted[knob] / row.sizes[knob]) if knob else 1.0)
        for name, knob in zip(names, grows, strict=True)
        if name in row.milliseconds
    }
    return min(times, key=times.__getitem__) if times else None

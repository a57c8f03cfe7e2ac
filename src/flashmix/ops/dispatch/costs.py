"""What each implementation costs for a signature, from measured times.

The measured signature nearest in the logarithm of the sizes tells, among lengths of one kind: a
length with a large prime factor says nothing of others. Where an implementation's time grows in
proportion to a size option (``scales_with``) and the call has more of it than was measured, its
time is scaled; the others are taken as they were measured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flashmix._core.machine import capability, device_name
from flashmix.ops._compile import constant_in_graphs
from flashmix.ops._cpu.smooth import smooth
from flashmix.ops.dispatch.signature import Direction, Sizes
from flashmix.ops.dispatch.tables import (
    Measurement,
    Time,
    forget_with,
    measurements,
    nearest_machine,
)


@dataclass(frozen=True)
class Costs:
    """The times of implementations for a signature, and the measurement that they are from.

    ``unmeasured`` names the machine of the call where another one was measured.
    """

    times: Mapping[str, Time]
    measurement: Measurement
    unmeasured: str | None = None


def measured_dtype(dtype: torch.dtype) -> str:
    """The dtype whose measurements apply to ``dtype``: both half types move the same bytes."""
    return str(torch.bfloat16 if dtype == torch.float16 else dtype).removeprefix("torch.")


@constant_in_graphs
def cheapest(
    op: str,
    sizes: Sizes,
    dtype: torch.dtype,
    device: torch.device,
    direction: Direction,
    machine: str | None,
    able: tuple[tuple[str, str | None, int], ...],
) -> str | None:
    """The name of the implementation with the least cost; see :func:`costs`.

    Of those whose intervals overlap with the least, the one with the fewest launches.
    """
    found = costs(op, sizes, dtype, device, direction, machine, able)
    if found is None:
        return None
    times = found.times
    least = min(times.values(), key=lambda time: time.median)
    near = [
        (launches, times[name].median, name)
        for name, _, launches in able
        if name in times and times[name].overlaps(least)
    ]
    return min(near)[2]


def costs(
    op: str,
    sizes: Sizes,
    dtype: torch.dtype,
    device: torch.device,
    direction: Direction,
    machine: str | None,
    able: tuple[tuple[str, str | None, int], ...],
) -> Costs | None:
    """The costs of implementations that were measured near those sizes; None where none were.

    Args:
        op: its name.
        sizes: of the signature.
        dtype: of the signature.
        device: of the signature.
        direction: of the signature; forward times serve where training was not measured.
        machine: the name of another machine, or None.
        able: name, ``scales_with`` and ``launches`` of each implementation that can run.
    """
    name, measured = machine or device_name(device), measured_dtype(dtype)
    if name is None:
        return None
    names = tuple(name for name, _, _ in able)
    row, unmeasured = _nearest(name, op, measured, direction, sizes, names), None
    if row is None and machine is None and not _rows(name, op, measured, direction):
        here = capability(device)
        other = None if here is None else nearest_machine(here, op, measured)
        if here is not None and other is not None:
            row = _nearest(other, op, measured, direction, sizes, names)
            unmeasured = "{} (compute capability {}.{})".format(name, *here)
    if row is None:
        return None
    given = dict(sizes)
    times = {
        name: row.times[name].times(max(1.0, given[option] / row.sizes[option]) if option else 1.0)
        for name, option, _ in able
        if name in row.times
    }
    return Costs(times, row, unmeasured)


def _rows(machine: str, op: str, dtype: str, direction: Direction) -> tuple[Measurement, ...]:
    return measurements(machine, op, dtype, direction) or measurements(
        machine, op, dtype, "forward"
    )


def _comparable(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes as times depend on them: of an attention, its sequences of one head, and their width.

    So [6, 1, N, 64] costs what [1, 6, N, 64] does.
    """
    comparable = dict(sizes)
    if heads := comparable.pop("num_heads", 0):
        comparable["batch"] *= heads
        comparable["dim"] //= heads
    return comparable


@functools.lru_cache(maxsize=4096)
def _nearest(
    machine: str, op: str, dtype: str, direction: Direction, sizes: Sizes, names: tuple[str, ...]
) -> Measurement | None:
    """The row nearest to ``sizes`` that holds the time of one of ``names``."""
    asked = dict(sizes)
    wanted = _comparable(asked)

    def kind(sizes: Mapping[str, int]) -> bool:
        """Fourier transforms have two kinds of lengths, attentions one."""
        return "num_heads" in sizes or smooth(sizes["seq_len"])

    def distance(row: Measurement) -> float:
        there = _comparable(row.sizes)
        return sum(abs(math.log(max(1, wanted[name]) / there[name])) for name in wanted)

    alike = [
        row
        for row in _rows(machine, op, dtype, direction)
        if set(row.sizes) == set(asked)
        and kind(row.sizes) == kind(asked)
        and not row.times.keys().isdisjoint(names)
    ]
    return min(alike, key=distance, default=None)


forget_with(_nearest)

"""Tables of measured times: the one that is shipped, and the one that ``flashmix tune`` writes.

Both have one schema, and one reader checks them::

    {"format": 2, "flashmix": "0.1.0", "torch": "2.11.0",
     "machines": {"NVIDIA H200": {"capability": "9.0", "ops": {"fnet": {
         "run": "benchmarks/results/h200/kernels-fnet", "commit": "14b89d27a738",
         "times": {"bfloat16": {"forward": [
             {"sizes": {"batch": 8, "seq_len": 512, "dim": 256},
              "ms": {"torch": [0.0414, 0.0412, 0.0416], "triton": [0.0119, 0.0118, 0.0120]}}]}}}}}}}

A time is a median in milliseconds with its 95 % interval: the GPU's own time, or the CPU's, of one
call, without what Python takes to issue it. ``capability`` is that of a GPU, null for a CPU.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashmix._files import write_whole
from flashmix._version import __version__
from flashmix.errors import ImplementationError
from flashmix.ops._build import cache_folder
from flashmix.ops._compile import constant_in_graphs

SHIPPED = Path(__file__).with_name("measured.json")
VARIABLE = "FLASHMIX_DISPATCH"
FORMAT = 2
DIRECTIONS = ("forward", "training")

_SIZES = ("batch", "seq_len", "dim", "num_heads", "modes", "window", "topk")
_NEEDED = {"batch", "seq_len", "dim"}


@dataclass(frozen=True)
class Time:
    """A median in milliseconds with its 95 % interval."""

    median: float
    low: float
    high: float

    def overlaps(self, other: Time) -> bool:
        """Whether the two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high

    def times(self, factor: float) -> Time:
        """The time of so many times the work."""
        return Time(factor * self.median, factor * self.low, factor * self.high)


@dataclass(frozen=True)
class Measurement:
    """One measured signature: where, its sizes, and the time of each implementation."""

    machine: str
    direction: str
    sizes: Mapping[str, int]
    times: Mapping[str, Time]
    source: str

    def __str__(self) -> str:
        times = ", ".join(f"{name} {time.median:.3g} ms" for name, time in self.times.items())
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        return f"{times} ({self.direction}, measured on {self.machine} at {sizes}; {self.source})"


def path() -> Path:
    """$FLASHMIX_DISPATCH, or ``dispatch.json`` in the user's cache folder of flashmix."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else cache_folder() / "dispatch.json"


def conditions() -> dict[str, Any]:
    """What a user's table is valid for, beside the machine."""
    return {"format": FORMAT, "flashmix": __version__, "torch": torch.__version__}


def problem(table: Any, valid_for: Mapping[str, Any]) -> str | None:
    """Why ``table`` cannot be used under those conditions, or None."""
    try:
        changed = [name for name, value in valid_for.items() if table[name] != value]
        if changed:
            listed = ", ".join(
                f"{name} {table[name]!s:.99} (here {valid_for[name]})" for name in changed
            )
            return f"was measured with {listed}"
        for machine in table["machines"].values():
            _check_machine(machine)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        return f"is damaged: {type(error).__name__}: {error}"
    return None


def _check_machine(machine: Any) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError unless all of it can be used."""
    if machine["capability"] is not None:
        _capability(machine["capability"])
    for measured in machine["ops"].values():
        if not isinstance(measured.get("run", ""), str):
            raise TypeError(f"not the name of a run: {measured['run']!r:.99}")
        for directions in measured["times"].values():
            for direction, entries in directions.items():
                if direction not in DIRECTIONS or not isinstance(entries, list):
                    raise ValueError(f"not the measurements of a direction: {direction!r:.99}")
                for entry in entries:
                    _check_entry(entry)


def _check_entry(entry: Any) -> None:
    sizes, times = entry["sizes"], entry["ms"]
    if not times or not set(_SIZES) >= sizes.keys() >= _NEEDED:
        raise ValueError(f"not a measurement: {entry!r:.99}")
    if not all(_positive(size, int) for size in sizes.values()):
        raise ValueError(f"sizes that are not positive integers: {sizes!r:.99}")
    if sizes["dim"] % sizes.get("num_heads", 1):
        raise ValueError(f"heads that do not divide the width: {sizes!r:.99}")
    for time in times.values():
        if not isinstance(time, list) or len(time) != 3:
            raise TypeError(f"not a median with its interval: {time!r:.99}")
        median, low, high = time
        if not all(_positive(ms, float) for ms in time) or not low <= median <= high:
            raise ValueError(f"not a median within its interval: {time!r:.99}")


def _positive(number: Any, kind: type[int] | type[float]) -> bool:
    """Whether it is a number of that kind, above zero, that arithmetic can take."""
    kinds = int if kind is int else (int, float)
    return isinstance(number, kinds) and not isinstance(number, bool) and 0 < number <= 1 << 62


def _capability(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


@functools.cache
def shipped() -> dict[str, Any]:
    """The table that comes with flashmix."""
    table: dict[str, Any] = json.loads(SHIPPED.read_text()) if SHIPPED.exists() else {}
    if table and (wrong := problem(table, {"format": FORMAT})):
        raise ImplementationError(f"the table {SHIPPED} {wrong}; install flashmix again")
    return table


@functools.cache
def user() -> dict[str, Any]:
    """The user's table, or an empty one; what is wrong with it is said once."""
    try:
        place = path()
    except ImplementationError:  # no home, no table
        return {}
    try:
        table: dict[str, Any] = json.loads(place.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        wrong: str | None = f"cannot be read: {error}"
    else:
        wrong = problem(table, conditions())
    if wrong is None:
        return table
    warnings.warn(
        f"flashmix ignores the dispatch table {place}, because it {wrong}. Run `flashmix tune` to "
        "measure this machine anew, or remove the file.",
        stacklevel=2,
    )
    return {}


def write(machine: str, capability: tuple[int, int] | None, ops: Mapping[str, Any]) -> Path:
    """Put what was measured on ``machine`` in place of what is known of the same ops and dtypes.

    Args:
        machine: its name.
        capability: of a GPU.
        ops: for each op and dtype the measurements by direction, as ``times`` of the schema.
    """
    place = path()
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        old = json.loads(place.read_bytes())
        machines = {} if problem(old, conditions()) else old["machines"]
    except (OSError, ValueError, RecursionError):
        machines = {}
    known = machines.setdefault(machine, {"ops": {}})
    known["capability"] = None if capability is None else "{}.{}".format(*capability)
    for op, dtypes in ops.items():
        known["ops"].setdefault(op, {"times": {}})["times"].update(dtypes)
    write_whole(place, json.dumps({**conditions(), "machines": machines}, indent=1) + "\n")
    forget()
    return place


@functools.cache
def measurements(machine: str, op: str, dtype: str, direction: str) -> tuple[Measurement, ...]:
    """What the first table that measured this op on that machine has: the user's, else ours."""
    for table, source in ((user(), ""), (shipped(), "")):
        measured = table.get("machines", {}).get(machine, {"ops": {}})["ops"].get(op, {})
        entries = measured.get("times", {}).get(dtype, {}).get(direction, [])
        source = measured.get("run") or str(path())
        if entries:
            return tuple(
                Measurement(
                    machine,
                    direction,
                    entry["sizes"],
                    {name: Time(*map(float, time)) for name, time in entry["ms"].items()},
                    source,
                )
                for entry in entries
            )
    return ()


@functools.cache
def nearest_machine(capability: tuple[int, int], op: str, dtype: str) -> str | None:
    """The machine whose compute capability is nearest, among those that measured this op."""
    measured = {
        name: _capability(machine["capability"])
        for table in (user(), shipped())
        for name, machine in table.get("machines", {}).items()
        if machine["capability"] and machine["ops"].get(op, {}).get("times", {}).get(dtype)
    }

    def distance(name: str) -> tuple[int, int]:
        major, minor = measured[name]
        return abs(major - capability[0]), abs(minor - capability[1])

    return min(measured, key=distance, default=None)


_caches: list[Any] = [shipped, user, measurements, nearest_machine]


def forget_with(cache: Any) -> Any:
    """Have :func:`forget` clear ``cache``, a cached function or a dictionary, as well."""
    _caches.append(cache)
    return cache


@constant_in_graphs
def forget() -> None:
    """Read the tables anew at the next call."""
    for cache in _caches:
        (cache.clear if isinstance(cache, dict) else cache.cache_clear)()

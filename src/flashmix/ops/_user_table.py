"""The table that ``flashmix tune`` writes for a machine, in the user's cache.

``dispatch.json`` holds machines in the form of the committed ``measured.json``, and what they were
measured under: a table of another release of flashmix or PyTorch is left aside, with one warning.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from flashmix._files import write_whole
from flashmix._version import __version__
from flashmix.errors import ImplementationError
from flashmix.ops._cpu.build import cache_folder

VARIABLE = "FLASHMIX_DISPATCH"
FORMAT = 1


def path() -> Path:
    """$FLASHMIX_DISPATCH, or ``dispatch.json`` in the user's cache folder of flashmix."""
    told = os.environ.get(VARIABLE)
    return Path(told) if told else cache_folder() / "dispatch.json"


def conditions() -> dict[str, Any]:
    """What a table is valid for, beside the machine."""
    return {"format": FORMAT, "flashmix": __version__, "torch": torch.__version__}


_SIZES = ("batch", "seq_len", "dim", "num_heads", "modes", "window", "topk")
_NEEDED = {"batch", "seq_len", "dim"}


def _positive(number: Any, kind: type[int] | type[float]) -> bool:
    """Whether it is a number of that kind, above zero, that arithmetic can take."""
    kinds = int if kind is int else (int, float)
    return isinstance(number, kinds) and not isinstance(number, bool) and 0 < number <= 1 << 62


def _check(table: Any) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError unless all of it can be used."""
    for ops in table["machines"].values():
        for dtypes in ops.values():
            for entries in dtypes.values():
                if not isinstance(entries, list):
                    raise TypeError(f"not a list: {entries!r:.99}")
                for one in entries:
                    _check_entry(one)


def _check_entry(one: Any) -> None:
    sizes, times = one["sizes"], one["ms"]
    if not times or not set(_SIZES) >= sizes.keys() >= _NEEDED:
        raise ValueError(f"not a measurement: {one!r:.99}")
    if not all(_positive(size, int) for size in sizes.values()):
        raise ValueError(f"sizes that are not positive integers: {sizes!r:.99}")
    if sizes["dim"] % sizes.get("num_heads", 1):
        raise ValueError(f"heads that do not divide the width: {sizes!r:.99}")
    if not all(_positive(ms, float) for ms in times.values()):
        raise ValueError(f"times that are not positive: {times!r:.99}")


def problem(table: Any) -> str | None:
    """Why ``table`` cannot be used, or None."""
    try:
        now = conditions()
        changed = [name for name, value in now.items() if table[name] != value]
        if changed:
            told = ", ".join(f"{name} {table[name]!s:.99} (here {now[name]})" for name in changed)
            return f"was measured with {told}"
        _check(table)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        return f"is damaged: {type(error).__name__}: {error}"
    return None


@functools.cache
def read() -> dict[str, Any]:
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
        wrong = problem(table)
    if wrong is None:
        return table
    warnings.warn(
        f"flashmix leaves the dispatch table {place} aside, because it {wrong}. Run `flashmix "
        "tune` to measure this machine anew, or remove the file.",
        stacklevel=2,
    )
    return {}


def write(machine: str, ops: dict[str, Any]) -> Path:
    """Put what was measured on ``machine`` in place of what is known of the same ops and dtypes."""
    place = path()
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        old = json.loads(place.read_bytes())
        machines = {} if problem(old) else old["machines"]
    except (OSError, ValueError, RecursionError):
        machines = {}
    known = machines.setdefault(machine, {})
    for op, dtypes in ops.items():
        known.setdefault(op, {}).update(dtypes)
    write_whole(place, json.dumps({**conditions(), "machines": machines}, indent=1) + "\n")
    read.cache_clear()
    return place

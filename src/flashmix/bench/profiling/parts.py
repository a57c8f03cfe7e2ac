"""Where the time of a call goes: mixing, its projections, the MLPs, the rest.

Modules are timed by hooks, within calls of their own that no other figure comes from. What a module
belongs to is found by where it lies: a layer is what a number in a path names, and its attention is
the child of it that attends, or holds what does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from flashmix.hf.attention import mixer_of
from flashmix.hf.guard import calls_interface

PARTS = ("mixing", "projections", "mlp", "rest")
"""What grows with N^2 in attention; the linear maps before and after it; the MLPs; all else."""
CALLS = 2
_LAYER = re.compile(r"^(.*\.\d+)\.([^.]+)")
_REST = re.compile(r"norm|dropout|droppath|identity|packedparams", re.IGNORECASE)

Mark = Any


def parts_of(model: nn.Module) -> dict[str, str]:
    """The modules to be timed, by path, and what they are: "attention", "projections", "mlp"."""
    attention = [path for path, module in model.named_modules() if _attends(module)]
    places = [found for path in attention if (found := _LAYER.match(path))]
    layers = {place[1] for place in places}
    roots = {place[0] for place in places}
    kinds: dict[str, str] = dict.fromkeys(attention, "attention")
    for path, module in model.named_modules():
        place = _LAYER.match(path)
        linear = _is_linear(module)
        if place is None or place[1] not in layers or (len([*module.children()]) and not linear):
            continue
        if ".mixer." in f"{path}.":
            continue  # what is in a mixer mixes
        if place[0] in roots:
            if linear:
                kinds[path] = "projections"
        elif linear or not _REST.search(type(module).__name__):
            kinds[path] = "mlp"
    return kinds


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, quantised or not."""
    return type(module).__name__.endswith("Linear")


def _attends(module: nn.Module) -> bool:
    """Whether a module mixes the tokens of a layer: attention of any kind, or a swapped layer."""
    if calls_interface(module) or mixer_of(module) is not None:
        return True
    linear = sum(map(_is_linear, module.children()))
    return "attention" in type(module).__name__.lower() and linear > 1


def part_shares(
    model: nn.Module, call: Callable[[], object], device: str
) -> dict[str, float] | None:
    """The share of each part in the time of ``call``, which calls ``model``; they add up to one.

    None where no attention of the model is found, so that nothing can be divided.
    """
    kinds = parts_of(model)
    if "attention" not in kinds.values():
        return None
    spans: list[tuple[str, Mark, Mark]] = []
    with _timed(model, kinds, spans, device):
        for _ in range(CALLS):
            start = _mark(device)
            call()
            spans.append(("whole", start, _mark(device)))
    if device == "cuda":
        torch.cuda.synchronize()
    took = dict.fromkeys(("whole", "attention", "inside", "projections", "mlp"), 0.0)
    for kind, start, end in spans:
        took[kind] += _between(start, end, device)
    projections = took["projections"] + took["inside"]
    found = {
        "mixing": max(0.0, took["attention"] - took["inside"]),
        "projections": projections,
        "mlp": took["mlp"],
    }
    found["rest"] = max(0.0, took["whole"] - sum(found.values()))
    whole = sum(found.values())
    return {part: found[part] / whole for part in PARTS}


@contextmanager
def _timed(
    model: nn.Module, kinds: dict[str, str], spans: list[tuple[str, Mark, Mark]], device: str
) -> Any:
    handles = []
    for path, kind in kinds.items():
        inner = any(kinds[one] == "attention" and path.startswith(f"{one}.") for one in kinds)
        kind = "inside" if inner and kind == "projections" else kind
        started: list[Mark] = []
        module = model.get_submodule(path)

        def before(_: Any, __: Any, started: list[Mark] = started) -> None:
            started.append(_mark(device))

        def after(
            _: Any, __: Any, ___: Any, started: list[Mark] = started, kind: str = kind
        ) -> None:
            spans.append((kind, started.pop(), _mark(device)))

        handles += [
            module.register_forward_pre_hook(before, prepend=True),
            module.register_forward_hook(after),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mark(device: str) -> Mark:
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Mark, end: Mark, device: str) -> float:
    """Seconds."""
    return start.elapsed_time(end) / 1e3 if device == "cuda" else end - start

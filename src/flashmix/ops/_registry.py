"""Which implementation of an op runs, and why.

An explicit ``impl`` works or raises; only ``impl="auto"`` chooses, and :func:`explain` tells how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from flashmix.errors import ArgumentError, ImplementationError, unknown_choice
from flashmix.ops._checks import FLOATING


def _present() -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to compute an op.

    ``devices`` and ``dtypes`` are what it supports. ``missing`` returns None where it can run,
    otherwise the sentence that says what is missing and how to get it.
    """

    name: str
    run: Callable[..., Any]
    summary: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] = FLOATING
    missing: Callable[[], str | None] = _present

    def refusal(self, dtype: torch.dtype, device: str) -> str | None:
        """Why it cannot run on ``device`` with ``dtype``, or None."""
        if device not in self.devices:
            return f"runs on {' and '.join(self.devices)}, not on {device}"
        if dtype not in self.dtypes:
            return f"does not support {dtype}"
        return self.missing()


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An op: its axes, and its implementations with the ones ``auto`` prefers first."""

    name: str
    axes: str
    implementations: Sequence[Implementation]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def choose(self, impl: str, dtype: torch.dtype, device: torch.device) -> Implementation:
        """The implementation that ``impl`` names, or the one ``auto`` prefers.

        Raises:
            ArgumentError: ``impl`` is not the name of an implementation.
            ImplementationError: it cannot run on this device, with this dtype or this install.
        """
        name = self.aliases.get(impl, impl)
        refusals = []
        for implementation in self.implementations:
            if name not in ("auto", implementation.name):
                continue
            refusal = implementation.refusal(dtype, device.type)
            if refusal is None:
                return implementation
            refusals.append(f"{implementation.name!r} {refusal}")
        if refusals:
            raise ImplementationError(f"{self.name}: " + "; ".join(refusals))
        names = [one.name for one in self.implementations]
        raise unknown_choice(f"impl of {self.name}", impl, ["auto", *names, *self.aliases])


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What ``impl="auto"`` runs for a case, why, and what became of the alternatives."""

    op: str
    impl: str
    reason: str
    alternatives: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{self.op}: auto runs {self.impl!r}, {self.reason}"]
        lines += [f"  {name}: {text}" for name, text in self.alternatives.items()]
        return "\n".join(lines)


def explain_choice(
    operators: Mapping[str, Operator],
    op: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: str | torch.device,
) -> Explanation:
    """See :func:`flashmix.explain`."""
    if op not in operators:
        raise unknown_choice("op", op, operators)
    operator = operators[op]
    axes = operator.axes.split(", ")
    if len(shape) != len(axes) or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ArgumentError(
            f"explain: shape of {op} must be {len(axes)} positive integers [{operator.axes}], "
            f"got {list(shape)}"
        )
    if dtype not in FLOATING:
        raise ArgumentError(
            f"explain: dtype must be float32, bfloat16, float16 or float64, got {dtype}"
        )
    device = torch.device(device)
    chosen = operator.choose("auto", dtype, device)
    rank = [one.name for one in operator.implementations].index(chosen.name) + 1
    alternatives = {
        one.name: one.refusal(dtype, device.type) or f"can run: {one.summary}"
        for one in operator.implementations
        if one is not chosen
    }
    return Explanation(
        op=op,
        impl=chosen.name,
        reason=(
            f"choice {rank} of {len(operator.implementations)} for any shape on "
            f"{device.type} with {dtype}: {chosen.summary}"
        ),
        alternatives=alternatives,
    )

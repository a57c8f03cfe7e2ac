"""An op with its implementations, and the one function that chooses among them.

An explicit ``impl`` works or raises; only ``impl="auto"`` chooses. It takes the implementation
with the least measured cost (:mod:`.costs`); of those whose intervals overlap with the least, the
one with the fewest launches. Where nothing was measured, it takes the first that can run, so the
order of an op's implementations is the choice that is safe everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from flashmix._core.plugins import load_plugins
from flashmix.errors import ArgumentError, ImplementationError, unknown_choice
from flashmix.ops._checks import FLOATING
from flashmix.ops._compile import constant_in_graphs
from flashmix.ops.dispatch.costs import Costs, cheapest, costs
from flashmix.ops.dispatch.implementation import Implementation
from flashmix.ops.dispatch.recording import record
from flashmix.ops.dispatch.signature import Direction, Signature
from flashmix.ops.dispatch.tables import forget, forget_with


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The implementation that runs a signature, why, and what became of the alternatives.

    Print it for the whole of it. ``reason`` and ``alternatives`` are written when they are asked
    for: a call needs neither.
    """

    op: str
    implementation: Implementation
    signature: Signature
    asked: str
    able: Sequence[Implementation]
    implementations: Sequence[Implementation]

    @property
    def impl(self) -> str:
        """The name of the implementation."""
        return self.implementation.name

    @property
    def costs(self) -> Costs | None:
        """The costs that it was chosen by; None where none are known or ``impl`` was named."""
        asked = _asked(self.op, self.signature, self.able) if self.asked == "auto" else None
        return None if asked is None else costs(*asked)

    @property
    def reason(self) -> str:
        """Why it runs, and how it works."""
        signature = self.signature
        where = f"on {signature.machine or signature.device} with {signature.dtype}"
        how = self.implementation.describe(signature)
        return f"{self._why()} for {list(signature.shape)} {where}: {how}"

    def _why(self) -> str:
        if self.asked != "auto":
            return f"named by impl={self.asked!r}"
        if (found := self.costs) is None:
            rank = [one.name for one in self.implementations].index(self.impl) + 1
            return f"number {rank} of {len(self.implementations)}, the first that can run,"
        times, row = found.times, found.measurement
        least = min(times, key=lambda name: times[name].median)
        words = [f"the fastest of {row}"]
        if least != self.impl:
            words = [f"as fast as {least!r} within the error of {row}, with fewer launches"]
        words += [
            f"{one.name!r} takes longer the more {one.scales_with}"
            for one in self.implementations
            if one.name in times and times[one.name] != row.times[one.name]
        ]
        if found.unmeasured is not None:
            words.append(f"chosen as there, since {found.unmeasured} was not measured")
        return ", ".join(words)

    @property
    def alternatives(self) -> Mapping[str, str]:
        """For each other implementation, why it cannot run or is passed over, or that it can."""
        signature = self.signature
        return {
            one.name: one.refusal(signature)
            or one.passed_over_reason(signature)
            or f"can run: {one.describe(signature)}"
            for one in self.implementations
            if one is not self.implementation
        }

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.asked} runs {self.impl!r}, {self.reason}"]
        lines += [f"  {name}: {text}" for name, text in self.alternatives.items()]
        return "\n".join(lines)


GROUP = "flashmix.implementations"
"""The entry points of installed packages that register implementations."""

_MOST_DECISIONS = 4096


@constant_in_graphs
def _load_plugins() -> None:
    load_plugins(GROUP)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An op: its axes, and its implementations, those that are safe everywhere first."""

    name: str
    axes: str
    implementations: list[Implementation]
    aliases: Mapping[str, str] = field(default_factory=dict)
    _decisions: dict[object, Decision] = field(
        default_factory=lambda: forget_with({}), init=False, repr=False, compare=False
    )

    def select(self, impl: str, signature: Signature) -> Decision:
        """The implementation that ``impl`` names, or that ``auto`` chooses for ``signature``.

        Raises:
            ArgumentError: ``impl`` is not the name of an implementation.
            ImplementationError: it cannot run this signature here.
        """
        if torch.compiler.is_compiling():
            decision = self._decide(impl, signature)
        else:
            decision = self._kept(impl, signature)
        record(self.name, decision.impl, signature)
        return decision

    def _kept(self, impl: str, signature: Signature) -> Decision:
        """The decision, made once for each signature."""
        key = (impl, *signature.key())
        try:
            found = self._decisions.get(key)
        except TypeError:  # sizes that are symbols
            return self._decide(impl, signature)
        if found is None:
            found = self._decide(impl, signature)
            if len(self._decisions) >= _MOST_DECISIONS:
                self._decisions.clear()
            self._decisions[key] = found
        return found

    def _decide(self, impl: str, signature: Signature) -> Decision:
        _load_plugins()
        name = self.aliases.get(impl, impl)
        named = [one for one in self.implementations if name in ("auto", one.name)]
        able = [one for one in named if one.refusal(signature) is None]
        if not able:
            if not named:
                raise self._unknown(impl)
            refusals = [f"{one.name!r} {one.refusal(signature)}" for one in named]
            raise ImplementationError(f"{self.name}: " + "; ".join(refusals))
        chosen = able[0]
        if name == "auto":
            able = [one for one in able if one.deprioritized_reason(signature) is None] or able
            able = [one for one in able if one.pads_reason(signature) is None] or able
            chosen = _cheapest(self.name, signature, able) or able[0]
        return Decision(
            op=self.name,
            implementation=chosen,
            signature=signature,
            asked=impl,
            able=able,
            implementations=self.implementations,
        )

    def check_impl(self, impl: str) -> None:
        """Raise ArgumentError unless ``impl`` is "auto" or names an implementation."""
        name = self.aliases.get(impl, impl) if isinstance(impl, str) else None
        if name != "auto" and name not in (one.name for one in self.registered()):
            raise self._unknown(impl)

    def _unknown(self, impl: object) -> ArgumentError:
        names = [one.name for one in self.implementations]
        return unknown_choice(f"impl of {self.name}", impl, ["auto", *names, *self.aliases])

    def registered(self) -> list[Implementation]:
        """The implementations, once installed packages have registered theirs."""
        _load_plugins()
        return self.implementations

    def register(self, implementation: Implementation) -> None:
        """Add an implementation from outside the package, behind those that are there.

        ``auto`` takes it where measurements say that it is the fastest; ``impl=`` takes it by name.

        Raises:
            ArgumentError: the name is taken.
        """
        taken = ("auto", *self.aliases, *(one.name for one in self.implementations))
        if implementation.name in taken:
            raise ArgumentError(
                f"register_implementation: {self.name} has an implementation called "
                f"{implementation.name!r}; choose another name"
            )
        self.implementations.append(implementation)
        forget()


def _asked(op: str, signature: Signature, able: Sequence[Implementation]) -> Any:
    """The arguments of :func:`costs`, or None where they cannot be known."""
    sizes = signature.sizes()
    if sizes is None or len(able) == 1:
        return None
    return (
        op,
        sizes,
        signature.dtype,
        signature.device,
        signature.direction,
        signature.machine,
        tuple((one.name, one.scales_with, one.launches) for one in able),
    )


def _cheapest(
    op: str, signature: Signature, able: Sequence[Implementation]
) -> Implementation | None:
    """The one with the least cost, where costs are known."""
    asked = _asked(op, signature, able)
    name = None if asked is None else cheapest(*asked)
    if name is None:
        return None
    return next(one for one in able if one.name == name)


def explain_choice(
    operators: Mapping[str, Operator],
    op: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: str | torch.device,
    options: Mapping[str, int | bool],
    direction: Direction = "forward",
    machine: str | None = None,
) -> Decision:
    """See :func:`flashmix.explain`."""
    if op not in operators:
        raise unknown_choice("op", op, operators)
    operator = operators[op]
    axes = operator.axes.split(", ")
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != len(axes) or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise ArgumentError(
            f"explain: shape of {op} must be {len(axes)} positive integers [{operator.axes}], "
            f"got {list(sizes) or shape!r}"
        )
    if dtype not in FLOATING:
        raise ArgumentError(
            f"explain: dtype must be float32, bfloat16, float16 or float64, got {dtype}"
        )
    if direction not in ("forward", "training"):
        raise unknown_choice("direction of explain", direction, ["forward", "training"])
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ArgumentError(
            f"explain: device must be one that PyTorch knows, such as 'cpu' or 'cuda', "
            f"got {device!r}"
        ) from None
    signature = Signature(sizes, dtype, place, options, direction, machine)
    return operator.select("auto", signature)

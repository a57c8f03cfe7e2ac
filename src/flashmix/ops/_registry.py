"""Which implementation of an op runs, and why.

An explicit ``impl`` works or raises; only ``impl="auto"`` chooses, and :func:`explain` tells how.
On a machine with measurements (see ``_measured``) the fastest at the nearest measured case runs,
elsewhere the first implementation that can.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from flashmix.errors import ArgumentError, ImplementationError, unknown_choice
from flashmix.ops import _measured
from flashmix.ops._case import Case
from flashmix.ops._checks import FLOATING
from flashmix.ops._compile import constant_in_graphs


def _present() -> str | None:
    return None


def _any_case(case: Case) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to compute an op.

    ``devices`` and ``dtypes`` are what it supports. ``missing`` returns None where it can run,
    otherwise the sentence that says what is missing and how to get it; ``unfit`` does the same
    for a case's shape and options, and ``road`` says how it goes about one that it takes. One that
    is not ``preferred`` is chosen by ``auto`` only where measurements say so; ``outdone`` says why
    ``auto`` passes one over that could run a case. One that is ``grouped`` takes fewer heads of
    keys than of queries itself; the others get them repeated. ``grows`` names the option that its
    time grows in proportion to, at most, where those of the others do not.
    """

    name: str
    run: Callable[..., Any]
    summary: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] = FLOATING
    missing: Callable[[], str | None] = _present
    unfit: Callable[[Case], str | None] = _any_case
    road: Callable[[Case], str | None] = _any_case
    preferred: bool = True
    grouped: bool = False
    grows: str | None = None
    outdone: Callable[[Case], str | None] = _any_case

    def told(self, case: Case) -> str:
        """The summary, and how it goes about ``case`` where it has several ways."""
        road = self.road(case)
        return self.summary if road is None else f"{self.summary} ({road})"

    def refusal(self, dtype: torch.dtype, device: str, case: Case | None = None) -> str | None:
        """Why it cannot run on ``device`` with ``dtype``, or ``case`` where given; else None."""
        if device not in self.devices:
            return f"runs on {' and '.join(self.devices)}, not on {device}"
        if dtype not in self.dtypes:
            return f"does not support {dtype}"
        # What another machine has installed is not known here: there nothing is missing.
        elsewhere = case is not None and case.machine is not None
        missing = None if elsewhere else self.missing()
        return missing or (None if case is None else self.unfit(case))


@dataclass(frozen=True)
class Choice:
    """What :meth:`Operator.choose` chose for a call.

    ``shape`` is that of the first argument, or None where the choice does not depend on it or a
    graph was compiled for any.
    """

    op: str
    impl: str
    dtype: torch.dtype
    shape: tuple[int, ...] | None
    options: tuple[tuple[str, int | bool], ...]


def implementations_by_op(choices: Iterable[Choice]) -> dict[str, list[str]]:
    """The implementations that were chosen, by op, in the order of their first call."""
    found: dict[str, list[str]] = {}
    for one in choices:
        if one.impl not in found.setdefault(one.op, []):
            found[one.op].append(one.impl)
    return found


_recording: list[dict[Choice, None]] = []


@contextlib.contextmanager
def recorded_choices() -> Iterator[dict[Choice, None]]:
    """The choices that calls in this block take, each once, in order: what runs, as it is run."""
    found: dict[Choice, None] = {}
    _recording.append(found)
    try:
        yield found
    finally:
        _recording.pop()


def _record(op: str, impl: str, case: Case | None, dtype: torch.dtype) -> None:
    if case is None or torch.compiler.is_compiling():
        _keep(op, impl, dtype)
    else:
        _keep(op, impl, dtype, tuple(case.shape), tuple(case.options.items()))


@constant_in_graphs
def _keep(
    op: str,
    impl: str,
    dtype: torch.dtype,
    shape: tuple[int, ...] | None = None,
    options: tuple[tuple[str, int | bool], ...] = (),
) -> None:
    for found in _recording:
        found[Choice(op, impl, dtype, shape, options)] = None


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An op: its axes, and its implementations with the ones ``auto`` prefers first."""

    name: str
    axes: str
    implementations: Sequence[Implementation]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def choose(
        self, impl: str, dtype: torch.dtype, device: torch.device, case: Case | None = None
    ) -> Implementation:
        """The implementation that ``impl`` names, or the one ``auto`` prefers.

        ``case`` holds the shape and options, for ops whose implementations differ in them.

        Raises:
            ArgumentError: ``impl`` is not the name of an implementation.
            ImplementationError: it cannot run on this device, with this dtype or this install.
        """
        name = self.aliases.get(impl, impl)
        named = [one for one in self.implementations if name in ("auto", one.name)]
        measured = case is not None and _measured.known(self.name, dtype, device, case.machine)
        able, place = [], device.type
        for one in named:
            if one.refusal(dtype, place, case) is not None:
                continue
            if name == "auto" and case is not None and one.outdone(case):
                continue
            able.append(one)
            if one.preferred and not measured:
                break
        if able:
            chosen = able[0] if len(able) == 1 else self._prefer(able, case)
            if _recording:
                _record(self.name, chosen.name, case, dtype)
            return chosen
        if named:
            refusals = [f"{one.name!r} {one.refusal(dtype, device.type, case)}" for one in named]
            raise ImplementationError(f"{self.name}: " + "; ".join(refusals))
        raise self._unknown(impl)

    def check_impl(self, impl: str) -> None:
        """Raise ArgumentError unless ``impl`` is "auto" or names an implementation."""
        name = self.aliases.get(impl, impl) if isinstance(impl, str) else None
        if name not in ("auto", *(one.name for one in self.implementations)):
            raise self._unknown(impl)

    def _unknown(self, impl: object) -> ArgumentError:
        names = [one.name for one in self.implementations]
        return unknown_choice(f"impl of {self.name}", impl, ["auto", *names, *self.aliases])

    def _prefer(self, able: Sequence[Implementation], case: Case | None) -> Implementation:
        key = None if case is None else case.key()
        if key is not None:
            names = tuple(one.name for one in able)
            grows = tuple(one.grows for one in able)
            name = _measured.fastest(self.name, *key, names, grows)
            if name is not None:
                return able[names.index(name)]
        return next((one for one in able if one.preferred), able[0])

    def why(self, chosen: Implementation, able: Sequence[Implementation], case: Case) -> str:
        """Why ``auto`` prefers ``chosen`` to the others that are able to run ``case``."""
        key = case.key()
        row = None if key is None else _measured.nearest(self.name, *key)
        if row is not None and any(one.name in row.milliseconds for one in able):
            growing = [
                f", where {one.name} takes longer the more {one.grows}"
                for one in able
                if one.grows is not None
                and one.grows in row.sizes
                and case.options[one.grows] > row.sizes[one.grows]
            ]
            return f"the fastest of {row}{''.join(growing)}"
        rank = [one.name for one in self.implementations].index(chosen.name) + 1
        return f"choice {rank} of {len(self.implementations)}"


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
    options: Mapping[str, int | bool],
    machine: str | None = None,
) -> Explanation:
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
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ArgumentError(
            f"explain: device must be one that PyTorch knows, such as 'cpu' or 'cuda', "
            f"got {device!r}"
        ) from None
    case = Case(sizes, dtype, place, options, machine)
    refusals = {
        one.name: one.refusal(dtype, case.device.type, case) for one in operator.implementations
    }
    able = [one for one in operator.implementations if refusals[one.name] is None]
    chosen = operator.choose("auto", dtype, case.device, case)
    alternatives = {
        one.name: refusals[one.name] or one.outdone(case) or f"can run: {one.told(case)}"
        for one in operator.implementations
        if one is not chosen
    }
    why = operator.why(chosen, able, case)
    return Explanation(
        op=op,
        impl=chosen.name,
        reason=f"{why} for {list(sizes)} on {machine or device} with {dtype}: {chosen.told(case)}",
        alternatives=alternatives,
    )

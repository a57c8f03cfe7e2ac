"""A plan: what an op does for one case, as steps that need no Python; and it as numbers.

csrc/plan.h reads the numbers, in the order that :func:`written` has them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ALLOCATE, COPY, LAUNCH, CALL, FREE, OP = range(6)
"""Kinds of steps."""

NONE, INT, REAL, BOOL, INTS, TENSORS, TENSOR, DEVICE, NUMBER = range(9)
"""Kinds of an op's operands."""

DTYPES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bool: 11,
    torch.bfloat16: 15,
}
"""PyTorch's own numbers of its dtypes, c10::ScalarType."""

Kind = Literal["input", "constant", "allocated"]


@dataclass(eq=False)
class Value:
    """A tensor with a storage of its own.

    Attributes:
        kind: given with the call, the same in all calls, or allocated by a step.
        tensor: what it was in the run that was watched.
        number: inputs are counted first, then constants, then what is allocated.
    """

    kind: Kind
    tensor: Tensor
    number: int = -1


@dataclass(frozen=True)
class Layout:
    """Sizes, strides and first element of a view, in elements from the value's first one."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def words(self) -> list[int]:
        """As numbers."""
        return [len(self.sizes), *self.sizes, len(self.strides), *self.strides, self.offset]


@dataclass(frozen=True)
class Place:
    """The address ``offset`` bytes into a value."""

    value: Value
    offset: int


Word = int | Place
"""Eight bytes of an argument: their bits, or an address."""

Argument = Word | list[Word]
"""An argument of a kernel; words in a list are passed by their address."""


@dataclass(frozen=True)
class Allocate:
    """A value comes to be, empty or of zeros."""

    value: Value
    dtype: torch.dtype
    layout: Layout
    zero: bool


@dataclass(frozen=True)
class Copy:
    """A view of a value gets the elements of a view of another, converted to its dtype."""

    value: Value
    layout: Layout
    source: Value
    source_layout: Layout


@dataclass(frozen=True)
class Launch:
    """A compiled Triton kernel runs; ``function`` is the driver's handle of it."""

    name: str
    function: int
    grid: tuple[int, int, int]
    warps: int
    blocks_a_cluster: int
    shared: int
    cooperative: bool
    early: bool
    arguments: Sequence[Argument]


@dataclass(frozen=True)
class Call:
    """A native CPU kernel runs; ``function`` is the address of its entry that takes slots."""

    function: int
    arguments: Sequence[Argument]


@dataclass(frozen=True)
class View:
    """A value as it is, or a view of it."""

    value: Value
    layout: Layout | None

    def words(self) -> list[int]:
        """As numbers."""
        layout = [] if self.layout is None else self.layout.words()
        return [self.value.number, self.layout is not None, *layout]


@dataclass(frozen=True)
class Number:
    """A number in the place of a tensor."""

    number: int | float


Operand = None | Number | bool | int | float | torch.device | Sequence[int] | View | Sequence[View]
"""An argument of an op; any device is that of the call."""


@dataclass(frozen=True)
class Op:
    """Another op of PyTorch runs; its results are values, or None where nothing new."""

    name: str
    overload: str
    operands: Sequence[Operand]
    results: Sequence[Value | None]


Step = Allocate | Copy | Launch | Call | Op
Output = View | None
"""A result, or none."""


@dataclass(frozen=True)
class Plan:
    """The steps of a case, in order, and its results."""

    values: Sequence[Value]
    steps: Sequence[Step]
    outputs: Sequence[Output]

    def constants(self) -> list[Tensor]:
        """The tensors that all calls share."""
        return [value.tensor for value in self.values if value.kind == "constant"]


def written(plan: Plan) -> tuple[list[int], list[str]]:
    """The numbers of a plan, and the names of its kernels."""
    names: list[str] = []
    counts = [sum(v.kind == kind for v in plan.values) for kind in ("input", "allocated")]
    steps = list(_with_frees(plan))
    words = [*counts, len(steps)]
    for step in steps:
        words += _step(step, names)
    words.append(len(plan.outputs))
    for output in plan.outputs:
        words += [-1, 0] if output is None else output.words()
    return [int(word) for word in words], names


def _with_frees(plan: Plan) -> Iterator[Step | Value]:
    """The steps that anything comes of, and after its last use each value that is freed then.

    Kernels are launched in order on one stream, so memory can be given to others at once.
    """
    kept = {output.value for output in plan.outputs if output is not None}
    last = {value: at for at, step in enumerate(plan.steps) for value in _used(step)}
    ends: dict[int, list[Value]] = {}
    for value, at in last.items():
        if value.kind == "allocated" and value not in kept:
            ends.setdefault(at, []).append(value)
    for at, step in enumerate(plan.steps):
        if isinstance(step, Allocate) and step.value not in last and step.value not in kept:
            continue
        yield step
        yield from ends.get(at, ())


def _used(step: Step) -> Iterator[Value]:
    """The values that a step reads or writes, allocations aside."""
    if isinstance(step, Copy):
        yield step.value
        yield step.source
    elif isinstance(step, Op):
        yield from (value for value in step.results if value is not None)
        for operand in step.operands:
            for one in operand if isinstance(operand, list) else (operand,):
                if isinstance(one, View):
                    yield one.value
    elif isinstance(step, Launch | Call):
        for argument in step.arguments:
            for word in argument if isinstance(argument, list) else (argument,):
                if isinstance(word, Place):
                    yield word.value


def _step(step: Step | Value, names: list[str]) -> list[int]:
    if isinstance(step, Value):
        return [FREE, step.number]
    if isinstance(step, Allocate):
        return [ALLOCATE, step.value.number, DTYPES[step.dtype], step.zero, *step.layout.words()]
    if isinstance(step, Copy):
        source = [step.source.number, *step.source_layout.words()]
        return [COPY, step.value.number, *step.layout.words(), *source]
    if isinstance(step, Call):
        return [CALL, step.function, *_arguments(step.arguments)]
    if isinstance(step, Op):
        names += [step.name, step.overload]
        results = [-1 if value is None else value.number for value in step.results]
        operands = [word for one in step.operands for word in _operand(one)]
        head = [OP, len(names) - 2, len(names) - 1, len(step.operands)]
        return [*head, *operands, len(results), *results]
    names.append(step.name)
    shape = [*step.grid, step.warps, step.blocks_a_cluster, step.shared]
    flags = [step.cooperative, step.early]
    return [
        LAUNCH,
        len(names) - 1,
        step.function,
        *shape,
        *flags,
        *_arguments(step.arguments),
    ]


def _arguments(arguments: Sequence[Argument]) -> list[int]:
    words = [len(arguments)]
    for argument in arguments:
        parts = argument if isinstance(argument, list) else [argument]
        words += [isinstance(argument, list), len(parts)]
        for word in parts:
            words += [word.value.number, word.offset] if isinstance(word, Place) else [-1, word]
    return words


def _operand(operand: Operand) -> list[int]:
    if operand is None:
        return [NONE]
    if isinstance(operand, View):
        return [TENSOR, *operand.words()]
    if isinstance(operand, Number):
        real = isinstance(operand.number, float)
        return [NUMBER, real, bits(operand.number) if real else int(operand.number)]
    if isinstance(operand, torch.device):
        return [DEVICE]
    if isinstance(operand, bool):
        return [BOOL, operand]
    if isinstance(operand, int):
        return [INT, operand]
    if isinstance(operand, float):
        return [REAL, bits(operand)]
    views = [one for one in operand if isinstance(one, View)]
    if views:
        return [TENSORS, len(views), *(word for one in views for word in one.words())]
    return [INTS, len(operand), *(one for one in operand if isinstance(one, int))]


def bits(x: float) -> int:
    """Those of a number of double precision."""
    return int(struct.unpack("<q", struct.pack("<d", x))[0])

"""Watches a kernel's Python run for one case, and keeps what it does: the plan of that case.

A plan holds allocations, copies, launches of compiled Triton kernels and calls of native CPU
kernels, in order. Whatever else happens, another op of PyTorch or contents that Python reads, makes
the case one that stays in Python. Inputs are copied to storages of their own first, so that it is
certain which of them an address belongs to; what else kernels are given must have been allocated
in the run, or be declared a :func:`constant`.
"""

from __future__ import annotations

import ctypes
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from flashmix.ops._launcher.plan import (
    DTYPES,
    Allocate,
    Argument,
    Call,
    Copy,
    Kind,
    Launch,
    Number,
    Op,
    Operand,
    Output,
    Place,
    Plan,
    Step,
    Value,
    View,
    Word,
    bits,
)
from flashmix.ops._launcher.storages import (
    UnplannableError,
    apart,
    layout_of,
    storage_of,
    tensors_of,
)

_EMPTY = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
_ZEROS = {"zeros", "zeros_like", "new_zeros"}
_COPIES = {"_to_copy", "clone"}
_VARIES = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}
_ENUMS = {
    torch.strided: 0,
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
}
"""PyTorch's own numbers of layouts and memory formats."""
_READS = {"tolist", "numpy", "item", "__array__"}
"""Methods by which Python reads contents; ops that do so are seen as ops."""

_here = threading.local()
_constants: dict[int, weakref.ref[Tensor]] = {}


def constant(x: Tensor) -> Tensor:
    """Declare that the contents of ``x``, which kernels are given, depend on no call."""
    _constants[storage_of(x)] = weakref.ref(x)
    return x


def current() -> Recording | None:
    """The recording in this thread, if there is one."""
    recording: Recording | None = getattr(_here, "recording", None)
    return recording


class Recording(TorchDispatchMode):
    """Watches the run of a kernel's Python.

    Args:
        inputs: the tensors of the case, or None in the place of one.
        python_of: the Python of an op, where it is one of this package's kernels.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor | None],
        python_of: Callable[[Any], Callable[..., Any] | None],
    ) -> None:
        super().__init__()
        self.inputs = [None if x is None else apart(x) for x in inputs]
        """Copies of the inputs, to run with."""
        self._python_of = python_of
        self._values: dict[int, Value] = {}
        self._inputs: list[Value] = []
        for x in self.inputs:
            value = Value("input", torch.empty(0) if x is None else x)
            self._inputs.append(value)
            if x is not None:
                self._values[storage_of(x)] = value
        self._steps: list[Step] = []
        self._alive: list[Any] = []  # so that no storage is taken for another that it follows
        self._reason: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else PyTorch would import all of Dynamo to keep it out."""
        return False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs within."""
        before = current()
        _here.recording = self
        try:
            with torch.no_grad(), _launches_seen(), _Reads(self), self:
                yield
        finally:
            _here.recording = before

    def refuse(self, reason: str) -> None:
        """The case stays in Python; the run goes on."""
        self._reason = self._reason or reason

    def plan(self, outputs: Sequence[Tensor | None]) -> Plan:
        """What ran, with these results.

        Raises:
            UnplannableError: the case stays in Python.
        """
        if self._reason is not None:
            raise UnplannableError(self._reason)
        if not any(isinstance(step, Launch | Call) for step in self._steps):
            raise UnplannableError("no kernel ran")
        results = [None if y is None else self._output(y) for y in outputs]
        values = [*self._inputs, *self._of("constant"), *self._of("allocated")]
        for number, value in enumerate(values):
            value.number = number
        return Plan(values, self._steps, results)

    def _of(self, kind: Kind) -> list[Value]:
        return [value for value in self._values.values() if value.kind == kind]

    def _output(self, y: Tensor) -> Output:
        value = self._value(y)
        if value.kind != "allocated" or y.dtype != value.tensor.dtype:
            raise UnplannableError("a result is not what was allocated for it")
        layout = layout_of(y, value)
        return View(value, None if layout == layout_of(value.tensor, value) else layout)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # what is composed of other ops, such as contiguous, is seen as those
            if (python := self._python_of(func)) is not None:
                return python(*args, **kwargs)
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        made = func(*args, **kwargs)
        self._alive.append((args, made))
        with self._refusing():
            self._saw(func, args, kwargs, made)
        return made

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except UnplannableError as error:
            self.refuse(str(error))

    def _saw(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        if _VARIES & set(func.tags):
            raise UnplannableError(f"{func} depends on contents, or on a random state")
        if name in _EMPTY or name in _ZEROS:
            self._allocate(made, zero=name in _ZEROS)
        elif name in _COPIES:
            self._allocate(made, zero=False)
            self._copy(made, args[0])
        elif name == "copy_":
            self._copy(args[0], args[1])
        elif func._schema.is_mutable or any(
            storage_of(x) not in self._values for x in tensors_of(made)
        ):
            self._op(func, args, kwargs, made)
        # Else it made views of what is known: what uses them knows where they are.

    def _op(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        """Keep a call of another op."""
        operands: list[Operand] = []
        for place, argument in enumerate(func._schema.arguments):
            given = args[place] if place < len(args) else argument.default_value
            given, kind = kwargs.get(argument.name, given), str(argument.type)
            if kind == "List[Optional[Tensor]]":
                raise UnplannableError(f"{func} takes tensors or None")
            if kind == "float":
                given = float(given)
            elif kind == "Tensor" and type(given) in (int, float):
                operands.append(Number(given))
                continue
            operands.append(self._operand(func, given))
        results: list[Value | None] = []
        for x in tensors_of(made):
            new = storage_of(x) not in self._values
            if new:
                self._values[storage_of(x)] = Value("allocated", x)
            results.append(self._values[storage_of(x)] if new else None)
        if len(results) != len(func._schema.returns):
            raise UnplannableError(f"{func} returns something else than tensors")
        name, overload = func._schema.name, func._schema.overload_name
        self._steps.append(Op(name, overload, operands, results))

    def _operand(self, func: Any, x: Any) -> Operand:
        if isinstance(x, Tensor):
            value = self._value(x)
            if value.kind == "input" and func._schema.is_mutable:
                raise UnplannableError("what was given is written to")
            layout = layout_of(x, value)
            return View(value, None if layout == layout_of(value.tensor, value) else layout)
        if isinstance(x, list | tuple) and all(isinstance(one, Tensor) for one in x) and x:
            views = [self._operand(func, one) for one in x]
            return [one for one in views if isinstance(one, View)]
        if isinstance(x, list | tuple) and all(type(one) is int for one in x):
            return [int(one) for one in x]
        if x is None or isinstance(x, bool | int | float | torch.device):
            return x
        if isinstance(x, torch.dtype) and x in DTYPES:
            return DTYPES[x]
        if x in _ENUMS:
            return _ENUMS[x]
        raise UnplannableError(f"{func} takes a {type(x).__name__}")

    def _allocate(self, x: Tensor, *, zero: bool) -> None:
        if x.dtype not in DTYPES:
            raise UnplannableError(f"a tensor of {x.dtype} is allocated")
        if x.storage_offset() or x.untyped_storage().nbytes() != x.numel() * x.element_size():
            raise UnplannableError("a tensor is allocated with room to spare")
        value = self._values[storage_of(x)] = Value("allocated", x)
        self._steps.append(Allocate(value, x.dtype, layout_of(x, value), zero))

    def _copy(self, to: Tensor, source: Tensor) -> None:
        value, other = self._value(to), self._value(source)
        if value.kind != "allocated":
            raise UnplannableError("what was given is written to")
        self._steps.append(Copy(value, layout_of(to, value), other, layout_of(source, other)))

    def _value(self, x: Tensor) -> Value:
        """The value that ``x`` is of."""
        if (found := self._values.get(storage_of(x))) is not None:
            return found
        declared = _constants.get(storage_of(x))
        if declared is None or declared() is None:
            raise UnplannableError("a kernel is given a tensor that is neither new nor constant")
        value = self._values[storage_of(x)] = Value("constant", x)
        return value

    def _place(self, x: Tensor) -> Place:
        value = self._value(x)
        return Place(value, x.data_ptr() - value.tensor.data_ptr())

    def _address(self, address: int) -> Place:
        """The place of an address in a tensor that was seen."""
        for value in self._values.values():
            storage = value.tensor.untyped_storage()
            if storage.data_ptr() <= address < storage.data_ptr() + storage.nbytes():
                return Place(value, address - value.tensor.data_ptr())
        raise UnplannableError("a kernel is given an address of no tensor that was seen")

    def launched(
        self, kernel: Any, compiled: Any, grid: Sequence[int], arguments: Mapping[str, Any]
    ) -> None:
        """Keep the launch of a compiled Triton kernel."""
        with self._refusing():
            self._steps.append(self._launch(kernel, compiled, grid, arguments))

    def _launch(
        self, kernel: Any, compiled: Any, grid: Sequence[int], arguments: Mapping[str, Any]
    ) -> Launch:
        meta, name = compiled.metadata, compiled.name
        if getattr(meta, "global_scratch_size", 0) or getattr(meta, "profile_scratch_size", 0):
            raise UnplannableError(f"{name} needs room of Triton's own")
        words = self.parameters(kernel, compiled, arguments)
        _kernels[compiled.function] = compiled
        x, y, z = (*grid, 1, 1)[:3]
        return Launch(
            name,
            compiled.function,
            (x, y, z),
            meta.num_warps,
            getattr(meta, "num_ctas", 1),
            meta.shared,
            bool(getattr(meta, "launch_cooperative_grid", False)),
            bool(getattr(meta, "launch_pdl", False)),
            words,
        )

    def parameters(
        self, kernel: Any, compiled: Any, arguments: Mapping[str, Any]
    ) -> list[Argument]:
        """What a compiled Triton kernel is given of these arguments, without Triton's own two."""
        words: list[Argument] = []
        for parameter, kind in compiled.src.signature.items():
            if kind != "constexpr":
                key = parameter if isinstance(parameter, str) else kernel.arg_names[parameter[0]]
                words.append(self._parameter(compiled.name, kind, arguments[key]))
        return words

    def _parameter(self, name: str, kind: Any, value: Any) -> Word:
        if isinstance(value, Tensor):
            return self._place(value)
        if kind == "fp32":
            return int.from_bytes(struct.pack("<f", value), "little")
        if kind == "fp64":
            return bits(float(value))
        if isinstance(value, int) and kind in ("i1", "u1", "i8", "i32", "u32", "i64"):
            return int(value)
        raise UnplannableError(f"{name} takes an argument of type {kind}")

    def called(self, function: int, arguments: Sequence[Any]) -> None:
        """Keep the call of a native CPU kernel."""
        with self._refusing():
            self._steps.append(Call(function, [self._argument(x) for x in arguments]))

    def _argument(self, x: Any) -> Argument:
        if x is None:
            return 0
        if isinstance(x, Tensor):
            return self._place(x)
        if isinstance(x, float):
            return bits(x)
        if isinstance(x, int):
            return int(x)
        if isinstance(x, ctypes.Array):
            return [int(one) for one in x]
        if isinstance(x, ctypes.Structure):
            fields = [(field[1], getattr(x, field[0])) for field in x._fields_]
            return [
                self._address(value) if kind is ctypes.c_void_p and value else value or 0
                for kind, value in fields
            ]
        raise UnplannableError(f"a kernel takes a {type(x).__name__}")


class _Reads(TorchFunctionMode):
    """Notices methods by which Python reads contents, which are no ops."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _READS:
            self._recording.refuse(f"Python reads contents by {func.__name__}")
        return func(*args, **(kwargs or {}))


def bound(kernel: Any, args: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a Triton kernel by name."""
    defaults = {one.name: one.default for one in kernel.params if one.has_default}
    return {**defaults, **dict(zip(kernel.arg_names, args, strict=False)), **options}


_kernels: dict[int, Any] = {}
"""Compiled kernels that plans launch, which Triton must not unload."""
_launching = threading.RLock()


@contextmanager
def _launches_seen() -> Iterator[None]:
    """Triton's launches in this thread are seen by its recording; those of others run as ever."""
    try:
        from triton.runtime.jit import JITFunction
    except ImportError:
        yield
        return
    with _launching:
        launch: Any = JITFunction.run

        def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            compiled = launch(kernel, *args, grid=grid, warmup=warmup, **options)
            recording = current()
            if recording is not None and not warmup:
                arguments = bound(kernel, args, options)
                sizes = grid(arguments) if callable(grid) else grid
                recording.launched(kernel, compiled, sizes, arguments)
            return compiled

        JITFunction.run = run
        try:
            yield
        finally:
            JITFunction.run = launch

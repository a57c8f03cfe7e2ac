"""The loaded native kernels, and why there are none where there are none."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashmix.errors import ImplementationError
from flashmix.ops._compile import constant_in_graphs
from flashmix.ops._launcher.recording import current

DEVICES = ("cpu",)

INT, FLAG, REAL, DATA = ctypes.c_int64, ctypes.c_bool, ctypes.c_double, ctypes.c_void_p
"""What kernels take: a number, a yes or no, a factor, and a contiguous tensor or None."""


class ROWS(ctypes.c_void_p):
    """A tensor in any layout whose last axis is contiguous; the other strides are passed too."""


def address(x: Tensor) -> int:
    """Where the elements of a contiguous tensor begin."""
    if not x.is_contiguous():
        raise AssertionError(f"a kernel would misread strides {x.stride()} of {list(x.shape)}")
    return x.data_ptr()


class Shape(ctypes.Structure):
    """``flashmix::Shape`` of csrc/sequences.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "tokens", "width")),
        *((name, ctypes.c_void_p) for name in ("mask", "offsets")),
    )


SHAPE, STRIDES = ctypes.POINTER(Shape), ctypes.POINTER(ctypes.c_int64)


@functools.cache
def _loaded() -> ctypes.CDLL | ImplementationError:
    path: Path | None = None
    try:
        from flashmix.ops._build import build, discard

        path = build()
        library = ctypes.CDLL(str(path))
        suffix = "dylib" if sys.platform == "darwin" else "so"
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        parallel_for = ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p)
        library.flashmix_initialise(parallel_for)
    except ImplementationError as error:
        return error
    except (ImportError, OSError, AttributeError) as error:
        if path is not None:
            discard(path)
        return ImplementationError(f"cannot be loaded: {error}")
    return library


@constant_in_graphs
def missing() -> str | None:
    """Why the kernels cannot run here, and the remedy; None where they can.

    The first call builds them where they are not yet built, which takes seconds, once.
    """
    library = _loaded()
    return str(library) if isinstance(library, ImplementationError) else None


class Kernel:
    """A function of the native library, for float32 and float64.

    Args:
        name: as in csrc, less its ``_f32`` or ``_f64``.
        takes: the types of its arguments; tensors among them are DATA, or ROWS where their
            strides are passed too.
    """

    def __init__(self, name: str, *takes: Any) -> None:
        self._name, self._takes = name, takes
        self._functions: dict[torch.dtype, Any] = {}

    def __call__(self, dtype: torch.dtype, *arguments: Any) -> None:
        """Run it for ``dtype``; tensors are passed by address, contiguous but for ROWS.

        Raises:
            ImplementationError: the library is not there.
            MemoryError: the kernel's own memory could not be had.
        """
        function = self._functions.get(dtype) or self._bind(dtype)
        if (recording := current()) is not None:
            recording.called(self._slots(dtype), arguments)
        passed = [
            x if not isinstance(x, Tensor) else x.data_ptr() if kind is ROWS else address(x)
            for x, kind in zip(arguments, self._takes, strict=True)
        ]
        if function(*passed):
            raise MemoryError(f"flashmix: {self._name} ran out of memory")

    def _bind(self, dtype: torch.dtype) -> Any:
        function = self._find(dtype, "")
        function.argtypes = self._takes
        self._functions[dtype] = function
        return function

    def _find(self, dtype: torch.dtype, entry: str) -> Any:
        library = _loaded()
        if isinstance(library, ImplementationError):
            raise library
        suffix = {torch.float32: "f32", torch.float64: "f64"}[dtype]
        return library[f"{self._name}_{suffix}{entry}"]

    def _slots(self, dtype: torch.dtype) -> int:
        """The address of the entry that takes each argument as eight bytes; see csrc/slots.h."""
        address = ctypes.cast(self._find(dtype, "_slots"), ctypes.c_void_p).value
        assert address is not None
        return address

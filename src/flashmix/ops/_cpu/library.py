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

DEVICES = ("cpu",)


class Shape(ctypes.Structure):
    """``flashmix::Shape`` of csrc/heads.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "tokens", "width")),
        *((name, ctypes.c_void_p) for name in ("order", "lengths")),
    )


@functools.cache
def _loaded() -> ctypes.CDLL | ImplementationError:
    try:
        from flashmix.ops._cpu.build import build

        library = ctypes.CDLL(str(build()))
        suffix = "dylib" if sys.platform == "darwin" else "so"
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        parallel_for = ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p)
    except ImplementationError as error:
        return error
    except (ImportError, OSError, AttributeError) as error:
        return ImplementationError(f"cannot be loaded: {error}")
    library.flashmix_initialise(parallel_for)
    return library


@constant_in_graphs
def missing() -> str | None:
    """Why the kernels cannot run here, and the remedy; None where they can.

    The first call builds them where they are not yet built, which takes seconds, once.
    """
    library = _loaded()
    return str(library) if isinstance(library, ImplementationError) else None


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Run the kernel ``name`` for ``dtype``; tensors are passed by address, as are structures.

    Raises:
        ImplementationError: the library is not there.
        MemoryError: the kernel's own memory could not be had.
    """
    library = _loaded()
    if isinstance(library, ImplementationError):
        raise library
    suffix = "f64" if dtype == torch.float64 else "f32"
    if getattr(library, f"{name}_{suffix}")(*map(_argument, arguments)):
        raise MemoryError(f"flashmix: {name} ran out of memory")


def _argument(value: Any) -> Any:
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, bool):
        return ctypes.c_bool(value)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    return value

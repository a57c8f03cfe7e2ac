"""Triton's interpreter without what it computes anew at every step, a good part of its time.

Whenever a kernel calls a device function it lists all of ``triton.language`` to patch it, and
whenever it looks up one of NumPy's types it builds the table of them. Neither ever changes.
"""

from __future__ import annotations

import functools
import inspect

from triton.language.core import is_builtin, pointer_type
from triton.runtime import interpreter


@functools.cache
def _builtins(package) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if is_builtin(member)]


def _patch_builtin(package, builder, scope) -> None:
    for name in _builtins(package):  # which is listed before anything of it is patched
        member = getattr(package, name)
        if is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, scope)


_of_pointers = interpreter._get_np_dtype
_of_scalars = functools.cache(_of_pointers)  # blocks have no hash


def _get_np_dtype(of):
    scalar = of.scalar
    return _of_pointers(of) if isinstance(scalar, pointer_type) else _of_scalars(scalar)


def speed_up() -> None:
    """Once a process; what is listed and looked up stays what it is."""
    interpreter._patch_builtin = _patch_builtin
    interpreter._get_np_dtype = _get_np_dtype

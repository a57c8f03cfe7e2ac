"""Launching a compiled kernel again without Triton's look at every argument.

Triton finds the kernel that it compiled by looking at each argument; where a call is short, that is
most of what the host does. Here it is found by what those looks would tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Grid = tuple[int, int, int]
_ALIGNED = 16
"""Bytes: Triton compiles for tensors that begin at a multiple of these, or for any."""


class Relaunched:
    """A kernel whose parameters are tensors, then numbers, then constants.

    The numbers are named in its ``do_not_specialize``, and the constants are ``tl.constexpr``.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self,
        grid: Grid,
        tensors: Sequence[Tensor | None],
        numbers: Sequence[int | float],
        constants: tuple[Any, ...],
    ) -> None:
        """Launch it on the current device.

        Args:
            grid: programs along each axis.
            tensors: the first of which is one.
            numbers: integers below 2**31, and floats.
            constants: hashable.
        """
        assert tensors[0] is not None
        looks = [t is not None and (t.dtype, t.data_ptr() % _ALIGNED == 0) for t in tensors]
        key = (tensors[0].device, constants, *looks)
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[grid](*tensors, *numbers, *constants)
            return
        # None from the interpreter, which compiles nothing.
        compiled = self._kernel[grid](*tensors, *numbers, *constants)
        if compiled is not None:
            self._compiled[key] = compiled

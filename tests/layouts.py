"""Tensors of the same numbers in any layout: Hypothesis draws how they lie in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Layout:
    """How tensors lie in memory; axes beyond those that a tensor has count for nothing.

    Attributes:
        order: axes as they follow one another in memory, the outermost first.
        steps: elements of memory from one to the next along each axis, less those between.
        margin: elements in front and behind along each axis.
        offset: elements of memory in front of all.
        odd: the stride of axes of size one, which means nothing.
        negative: the numbers stand with the wrong sign, and a bit says so.
    """

    order: tuple[int, ...]
    steps: tuple[int, ...]
    margin: int
    offset: int
    odd: int
    negative: bool

    def of(self, x: Tensor) -> Tensor:
        """The numbers of ``x`` in this layout, garbage between them; detached."""
        x = x.detach()
        if self.negative and x.is_floating_point():
            x = torch.complex(torch.zeros_like(x), -x).conj().imag
            assert x.is_neg()
            return x
        axes = [axis for axis in self.order if axis < x.dim()]
        room = [x.shape[axis] * self.steps[axis] + 2 * self.margin for axis in axes]
        memory = x.new_empty(self.offset + math.prod(room))
        memory.fill_(float("nan") if x.is_floating_point() else 1)
        if not x.is_floating_point():
            memory[::2] = 0
        strides, offset = [0] * x.dim(), self.offset
        for place, axis in enumerate(axes):
            inner = math.prod(room[place + 1 :])
            strides[axis] = self.steps[axis] * inner
            offset += self.margin * inner
        laid = memory.as_strided(x.shape, strides, offset)
        laid.copy_(x)
        odd = [self.odd if n == 1 else s for n, s in zip(x.shape, strides, strict=True)]
        return laid.as_strided(x.shape, odd, offset)


def layouts(*, negative: bool = True):
    """Any layout of up to five axes."""
    return st.builds(
        Layout,
        order=st.permutations(range(5)).map(tuple),
        steps=st.tuples(*[st.integers(1, 3)] * 5),
        margin=st.integers(0, 2),
        offset=st.integers(0, 3),
        odd=st.integers(0, 7),
        negative=st.booleans() if negative else st.just(False),
    )


TRANSPOSED = Layout((4, 3, 2, 1, 0), (1,) * 5, 0, 0, 1, False)
"""Back to front: as ``mask.T.contiguous().T``, which sequence-first code makes."""
SLICED = Layout((1, 0, 3, 2, 4), (2, 1, 3, 2, 2), 1, 3, 0, False)
CHANNELS_LAST = Layout((0, 2, 3, 1, 4), (1,) * 5, 0, 0, 7, False)
NEGATIVE = Layout((0, 1, 2, 3, 4), (1,) * 5, 0, 0, 1, True)
FIXED = {
    "transposed": TRANSPOSED,
    "sliced": SLICED,
    "channels-last": CHANNELS_LAST,
    "negative": NEGATIVE,
}


def spread(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``x`` with the first slice of each of ``axes`` everywhere along it, at stride zero."""
    for axis in axes:
        if axis < x.dim():
            x = x.narrow(axis, 0, 1).expand_as(x)
    return x


class PromisedLayouts(TorchDispatchMode):
    """Checks that each kernel's fake promises the shapes, dtypes and strides that come out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        got = op(*args, **(kwargs or {}))
        if op.namespace == "flashmix":
            self.seen.add(op.name())
            fakes = FakeTensorMode()
            given = [fakes.from_tensor(x) if isinstance(x, Tensor) else x for x in args]
            with fakes:
                promised = op(*given)
            for one, other in zip(_tensors(got), _tensors(promised), strict=True):
                assert _described(one) == _described(other), f"{op.name()} breaks its promise"
        return got


def _tensors(result):
    return [result] if isinstance(result, Tensor) else list(result)


def _described(x: Tensor):
    """Strides of axes of size one mean nothing, as do those of no elements."""
    strides = [s for n, s in zip(x.shape, x.stride(), strict=True) if n > 1 and x.numel()]
    return x.shape, x.dtype, strides

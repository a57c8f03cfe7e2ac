"""Which storage a tensor lies in, and where; and copies in storages of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.ops._launcher.plan import Layout, Value

ALIGNMENT = 16
"""Bytes; kernels are compiled for addresses that are whole multiples of it, or are not."""


class UnplannableError(Exception):
    """Why a case has no plan."""


def storage_of(x: Tensor) -> int:
    """A number that is the storage's own while it lives."""
    return int(x.untyped_storage()._cdata)


def tensors_of(made: Any) -> list[Tensor]:
    """The tensors among an op's results."""
    parts = made if isinstance(made, tuple | list) else [made]
    return [x for x in parts if isinstance(x, Tensor)]


def layout_of(x: Tensor, value: Value) -> Layout:
    """``x`` as a view of the value that it is of."""
    if x.dtype != value.tensor.dtype:
        raise UnplannableError("a tensor is read in another dtype")
    distance = x.data_ptr() - value.tensor.data_ptr() if x.numel() else 0
    return Layout(tuple(x.shape), tuple(x.stride()), distance // x.element_size())


def apart(x: Tensor) -> Tensor:
    """A copy of ``x`` in a storage of its own, with its strides, as far off an aligned address."""
    x = x.detach()
    extent = 0
    if x.numel():
        pairs = zip(x.shape, x.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in pairs)
    item, shift = x.element_size(), x.data_ptr() % ALIGNMENT
    room = torch.empty(extent * item + ALIGNMENT, dtype=torch.uint8, device=x.device)
    lead = (shift - room.data_ptr()) % ALIGNMENT
    flat = room[lead : lead + extent * item].view(x.dtype)
    flat.copy_(x.as_strided((extent,), (1,)))
    return flat.as_strided(x.shape, x.stride(), flat.storage_offset())

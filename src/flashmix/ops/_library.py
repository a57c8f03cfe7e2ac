"""Registration with ``torch.library`` of ops that are compositions of PyTorch's own.

Such an op shows as one node in a profile or an exported graph, and autograd, ``torch.compile``
and fake tensors see through it. Ops with a backward of their own use ``torch.library.custom_op``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("flashmix", "FRAGMENT")


def composite_op(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the op ``flashmix::<schema>`` and return that op."""
    name = schema.split("(")[0]

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, function, "CompositeImplicitAutograd")
        op: Callable[..., Any] = getattr(torch.ops.flashmix, name).default
        return op

    return register

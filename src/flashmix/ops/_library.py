"""Registration with ``torch.library``: of compositions of PyTorch's ops, and of kernels.

A composition shows as one node in a profile or an exported graph, and autograd, ``torch.compile``
and fake tensors see through it. A kernel, native or in Triton or with a backward of its own, is a
:class:`KernelOp`: where no gradient is needed a call costs 2 us, and one of
``torch.library.custom_op`` 9, since autograd's part and a check of the result for aliases are
written in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("flashmix", "FRAGMENT")


def _define(schema: str) -> str:
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    return schema.split("(")[0]


def needs_gradient(*arguments: Any) -> bool:
    """Whether autograd must record a call with these arguments."""
    return torch.is_grad_enabled() and any(
        isinstance(one, Tensor) and one.requires_grad for one in arguments
    )


def composite_op(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the op ``flashmix::<schema>`` and return that op."""
    name = _define(schema)

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.impl(name, function, "CompositeImplicitAutograd")
        op: Callable[..., Any] = getattr(torch.ops.flashmix, name).default
        return op

    return register


class KernelOp:
    """The op ``flashmix::NAME`` of a typed function, which autograd does not see into.

    Give it a fake kernel, then, where it has a gradient, its autograd. A call that needs no
    gradient goes to ``<NAME>_forward``, the same kernel past autograd's part.
    """

    def __init__(self, name: str, kernel: Callable[..., Any], key: str) -> None:
        self._name, self._kernel, self._key = name, kernel, key
        self.op = self._forward = self._add(name)
        self.__doc__ = kernel.__doc__

    def _add(self, name: str) -> Callable[..., Any]:
        _define(name + torch.library.infer_schema(self._kernel, mutates_args=()))
        _LIBRARY.impl(name, self._kernel, self._key)
        op: Callable[..., Any] = getattr(torch.ops.flashmix, name).default
        return op

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """Take ``fake`` for outputs of the right shapes, dtypes and strides."""
        self._fake = fake
        torch.library.register_fake(f"flashmix::{self._name}", fake, lib=_LIBRARY)

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None]
    ) -> None:
        """See ``torch.library.register_autograd``."""
        forward = f"{self._name}_forward"
        self._forward = self._add(forward)
        torch.library.register_fake(f"flashmix::{forward}", self._fake, lib=_LIBRARY)
        torch.library.register_autograd(
            f"flashmix::{self._name}", backward, setup_context=setup_context, lib=_LIBRARY
        )

    def __call__(self, *arguments: Any) -> Any:
        op = self.op if needs_gradient(*arguments) else self._forward
        return op(*arguments)


def kernel_op(
    name: str, *, key: str = "CompositeExplicitAutograd"
) -> Callable[[Callable[..., Any]], KernelOp]:
    """Register a function as an op: on every device, or that of a dispatch ``key`` ("CPU")."""
    return lambda kernel: KernelOp(name, kernel, key)

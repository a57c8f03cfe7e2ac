"""Registration with ``torch.library``: of compositions of PyTorch's ops, and of native CPU kernels.

A composition shows as one node in a profile or an exported graph, and autograd, ``torch.compile``
and fake tensors see through it. Ops with a backward of their own use ``torch.library.custom_op``,
or where microseconds count, as on the CPU, what is here: a call of ``custom_op`` costs 9 us, since
autograd's part and a check of the result for aliases are written in Python, and one of
:class:`CpuOp` 2 us.
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


def cpu_op(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as the CPU kernel of the op ``flashmix::<schema>``; return that op.

    ``fake`` makes outputs of the right shapes, dtypes and strides. The op has no gradient.
    """
    name = _define(schema)

    def register(function: Callable[..., Any]) -> Any:
        _LIBRARY.impl(name, function, "CPU")
        torch.library.register_fake(f"flashmix::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.flashmix, name).default

    return register


class CpuOp:
    """A CPU op with a gradient, and its forward alone for the calls that need none.

    Args:
        schema: as in :func:`cpu_op`; the forward alone is called ``<name>_forward``.
        kernel: the CPU kernel of both.
        fake: as in :func:`cpu_op`.
        setup: as ``setup_context`` in ``torch.library.register_autograd``, as is ``backward``.
        backward: see ``setup``.
    """

    def __init__(
        self,
        schema: str,
        kernel: Callable[..., Any],
        *,
        fake: Callable[..., Any],
        setup: Callable[..., None],
        backward: Callable[..., Any],
    ) -> None:
        name, signature = schema.split("(", 1)
        self._forward = cpu_op(f"{name}_forward({signature}", fake)(kernel)
        self._differentiable = cpu_op(schema, fake)(kernel)
        torch.library.register_autograd(
            f"flashmix::{name}", backward, setup_context=setup, lib=_LIBRARY
        )

    def __call__(self, *arguments: Any) -> Any:
        op = self._differentiable if needs_gradient(*arguments) else self._forward
        return op(*arguments)

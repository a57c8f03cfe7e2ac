"""Gradients that have no derivative of their own, and raise when they are differentiated.

PyTorch's ``once_differentiable`` raises only where the incoming gradient requires one. Where that
is constant, what the gradients owe to the saved tensors would be lost silently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flashmix.errors import ImplementationError

Gradients = Sequence[Tensor | None]


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, what: str, count: int, *tensors: Tensor | None) -> tuple[Any, ...]:
        ctx.what = what
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ImplementationError(
            f"{ctx.what} across ranks has no second derivative; take it on one device, with "
            "impl='reference' where its implementation has none either"
        )


def first_order(what: str, compute: Callable[[], Gradients], *inputs: Tensor | None) -> Gradients:
    """The gradients that ``compute()`` returns; differentiating them raises ImplementationError.

    Args:
        what: the operation, for the message.
        compute: returns the gradients.
        inputs: all tensors that they depend on: the incoming gradient and what was saved.
    """
    with torch.no_grad():
        found = compute()
    if not torch.is_grad_enabled():
        return found
    graded: Gradients = _FirstOrder.apply(what, len(found), *found, *inputs)
    return graded

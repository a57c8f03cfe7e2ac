"""Gradients that have none themselves, and say so when they are asked for one.

PyTorch's ``once_differentiable`` is silent where the incoming gradient is constant: what the
gradients owe to the saved tensors is then lost without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flashmix.errors import ImplementationError

Gradients = Sequence[Tensor | None]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, what: str, count: int, *tensors: Tensor | None) -> tuple[Any, ...]:
        ctx.what = what
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ImplementationError(
            f"{ctx.what} over ranks has no second derivative; take it on one device, with "
            "impl='reference' where its implementation has none either"
        )


def once(what: str, compute: Callable[[], Gradients], *inputs: Tensor | None) -> Gradients:
    """The gradients that ``compute`` finds; one of ``what`` that is differentiated raises.

    ``inputs`` are all that they depend on: the incoming gradient and what was saved.
    """
    with torch.no_grad():
        found = compute()
    if not torch.is_grad_enabled():
        return found
    graded: Gradients = _Once.apply(what, len(found), *found, *inputs)
    return graded

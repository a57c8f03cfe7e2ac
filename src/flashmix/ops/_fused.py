"""PyTorch's fused attention, whose gradients have no derivative, and say what has."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix.errors import ImplementationError


class _FirstOrder(torch.autograd.Function):
    """The identity of gradients that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, what: str, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.what = what
        return grads

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ImplementationError(
            f"{ctx.what}: PyTorch's fused attention has no second derivative; "
            "use impl='reference', which has those of every order"
        )


def sdpa(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention``; differentiating its gradients names ``op`` and what to do.

    What it computes by a composition, without a fused kernel, has derivatives of every order.
    """
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal)
    # The transforms of torch.func differentiate every gradient, whether asked to or not.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return y
    node = y.grad_fn
    if node is None:
        return y
    if node.name().startswith("Slice"):  # of a head that was padded for the kernel
        node = node.next_functions[0][0] or node

    def refuse_again(grads: Any, _: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        nodes = [g.grad_fn.name() for g in grads if g is not None and g.grad_fn is not None]
        if not any("NotImplemented" in name for name in nodes):
            return None
        return _FirstOrder.apply(op, *grads)

    node.register_hook(refuse_again)
    return y

"""Classifiers that read the mean of all tokens instead of the first one.

``fnet`` leaves the sum of all tokens in the first one: what they have in common grows with their
number, what tells texts apart only with its root. The mean over the mixed tokens has
no such offset.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flashmix.errors import ModelError

Model = TypeVar("Model", bound=nn.Module)
POOLING = "flashmix_pooling"
"""The entry of a model's config that records the pooling."""
STACKS = ("encoder", "transformer")


def pool_mean(model: Model) -> Model:
    """Let a classifier's head read the mean over real tokens, in place, and return the model.

    The mean takes the first token's place in the last layer's output, where heads read it.
    ``model.config`` records it, and :func:`flashmix.from_pretrained` repeats it.

    Args:
        model: a classifier of transformers.

    Raises:
        ModelError: the model's layers were not found.
    """
    base: Any = getattr(model, "base_model", model)
    stack = next((getattr(base, name) for name in STACKS if hasattr(base, name)), None)
    if stack is None or stack is base:
        raise ModelError(
            f"{type(model).__name__} has no {' or '.join(STACKS)}, whose tokens could be averaged"
        )
    if hasattr(model, POOLING):
        return model
    # On the base: heads call it with their mask, and it may be called without a head.
    pooling = _Pooling(list(inspect.signature(base.forward).parameters))
    base.register_forward_pre_hook(pooling.keep_mask, with_kwargs=True)
    stack.register_forward_hook(pooling.average)
    setattr(model, POOLING, pooling)
    config: Any = model.config
    setattr(config, POOLING, "mean")
    return model


class _Pooling:
    """The hooks of one model; an object, so that they are copied and pickled with it."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.mask: Tensor | None = None
        self.over_ranks: Callable[[Tensor], Tensor] | None = None

    def keep_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the mask of a call, for its last layer."""
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        mask = given.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise ModelError(
                "pool_mean: the mean needs attention_mask [B, N] with 1 or True at real tokens, "
                f"got {list(mask.shape)}"
            )
        self.mask = mask

    def average(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The last layer's output with the mean over real tokens in the first one's place."""
        hidden, mask = output[0], self.mask
        self.mask = None
        if mask is None and self.over_ranks is None:
            mean = hidden.mean(1, keepdim=True)
        else:
            real = hidden.new_ones(hidden.shape[:2]) if mask is None else mask.to(hidden.dtype)
            sums = torch.cat([hidden * real[..., None], real[..., None]], 2).sum(1, keepdim=True)
            sums = sums if self.over_ranks is None else self.over_ranks(sums)
            mean = sums[..., :-1] / sums[..., -1:].clamp(min=1)
        pooled = torch.cat([mean.to(hidden.dtype), hidden[:, 1:]], dim=1)
        if isinstance(output, tuple):
            return (pooled, *output[1:])
        output["last_hidden_state"] = pooled
        return output


def sum_means_by(model: nn.Module, over_ranks: Callable[[Tensor], Tensor]) -> None:
    """Let the mean that ``model`` pools by run over all ranks that share its tokens.

    ``over_ranks`` sums a tensor over them, with gradients.

    Raises:
        ModelError: the model does not pool by the mean.
    """
    pooling: _Pooling | None = getattr(model, POOLING, None)
    if pooling is None:
        raise ModelError(
            f"{type(model).__name__} reads its first token, which one rank alone holds; pool by "
            "the mean (pool_mean, --pooling mean)"
        )
    pooling.over_ranks = over_ranks

"""The strategy of classifiers across ranks: positions of the slice, a mean over all tokens.

Shapes: B batch, n own tokens, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ParallelError
from flashmix.models import SequenceClassifier, TextClassifier
from flashmix.parallel.comm.collectives import all_sum
from flashmix.parallel.strategy import ShardedModule


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: int) -> Tensor:
        ctx.parts = parts
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.parts, None


def scale_gradient(x: Tensor, ranks: int) -> Tensor:
    """``x`` unchanged; its gradient is divided by ``ranks`` in the backward.

    For logits that are equal on so many ranks, each of which computes the same loss from them: the
    gradients, which are summed across the ranks, are then those of one loss.

    Args:
        x: of any shape and floating dtype.
        ranks: number of ranks P.
    """
    return _ScaleGradient.apply(x, ranks)


class ClassifierStrategy(ShardedModule):
    """A classifier of a slice of the tokens; its logits [B, C] are those of all, on every rank."""

    replaces = ("positions", "pool")

    def attach(self, module: nn.Module) -> None:
        """Also divide the gradient of the logits, of which every rank computes the same loss."""
        super().attach(module)
        module.register_forward_hook(self._scale_logits)

    def guard(self, module: nn.Module) -> None:
        """Nothing: :attr:`replaces` are the only methods that reach across tokens."""

    def positions(self, model: Any, tokens: Tensor) -> Tensor:
        """The learned positions [n, D] of this rank's tokens."""
        layout = self.layout(tokens, None, 1)
        if layout.total > len(model.position):
            raise ParallelError(
                f"{self.where}: at most max_len = {len(model.position)} tokens fit, got "
                f"{layout.total} on {self.ranks.size} ranks"
            )
        positions: Tensor = model.position[layout.own]
        return positions

    def pool(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over the real tokens of all ranks."""
        count = y.new_full((len(y), 1), y.shape[1]) if mask is None else mask.sum(1, keepdim=True)
        sums = all_sum(torch.cat((y.sum(1), count.to(y.dtype)), 1), self.ranks)
        return sums[:, :-1] / sums[:, -1:].clamp(min=1)

    def _scale_logits(self, module: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        return scale_gradient(logits, self.ranks.size)


MODEL_STRATEGIES: dict[type[nn.Module], type[ShardedModule]] = {
    SequenceClassifier: ClassifierStrategy,
    TextClassifier: ClassifierStrategy,
}

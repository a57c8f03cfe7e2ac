"""The classifiers across ranks: positions of the slice, a mean over all tokens.

Shapes: B batch, n own tokens, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ParallelError
from flashmix.models import SequenceClassifier, TextClassifier
from flashmix.parallel.comm.collectives import all_sum
from flashmix.parallel.sharded import ShardedModule


class _ScaleGradient(torch.autograd.Function):
    """Passes its input on, and a P-th of the gradient back.

    Every rank computes the same loss from the same logits; together they count as one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: int) -> Tensor:
        ctx.parts = parts
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.parts, None


def scale_gradient(x: Tensor, ranks: int) -> Tensor:
    """``x``, of which every one of ``ranks`` computes the same loss: together they count once."""
    return _ScaleGradient.apply(x, ranks)


class _ShardedClassifier(ShardedModule):
    """A classifier of a slice of the tokens; its logits [B, C] are those of all, on every rank."""

    position: nn.Parameter

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        logits: Tensor = super().forward(tokens, mask)
        return scale_gradient(logits, self.ranks.size)

    def positions(self, tokens: Tensor) -> Tensor:
        """The learned positions [n, D] of this rank's tokens."""
        layout = self.layout(tokens, None, 1)
        if layout.total > len(self.position):
            raise ParallelError(
                f"{self.where}: at most max_len = {len(self.position)} tokens fit, got "
                f"{layout.total} on {self.ranks.size} ranks"
            )
        return self.position[layout.own]

    def pool(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over the real tokens of all ranks."""
        count = y.new_full((len(y), 1), y.shape[1]) if mask is None else mask.sum(1, keepdim=True)
        sums = all_sum(torch.cat((y.sum(1), count.to(y.dtype)), 1), self.ranks)
        return sums[:, :-1] / sums[:, -1:].clamp(min=1)


class ShardedSequenceClassifier(_ShardedClassifier, SequenceClassifier):
    """Features [B, n, F] in."""


class ShardedTextClassifier(_ShardedClassifier, TextClassifier):
    """Token ids [B, n] in."""


MODELS: dict[type[nn.Module], type[ShardedModule]] = {
    SequenceClassifier: ShardedSequenceClassifier,
    TextClassifier: ShardedTextClassifier,
}

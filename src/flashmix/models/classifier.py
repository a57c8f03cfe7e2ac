"""A classifier over a sequence of feature vectors.

Shapes: B batch, N tokens, F features, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashmix.models.encoder import Encoder
from flashmix.ops import _checks

POSITION_SCALE = 0.3


class SequenceClassifier(nn.Module):
    """Embedding and learned positions, an encoder, the mean over real tokens, a linear head.

    Args:
        features: width F of an input token.
        max_len: longest sequence, in tokens.
        classes: number of classes C.
        dim, depth, mixers, num_heads: see :class:`Encoder`.
    """

    def __init__(
        self,
        features: int,
        max_len: int,
        classes: int,
        *,
        dim: int = 64,
        depth: int = 2,
        mixers: str = "attention",
        num_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.position = nn.Parameter(torch.randn(max_len, dim) * POSITION_SCALE)
        self.encoder = Encoder(dim, depth, mixers, num_heads=num_heads)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits [B, C] of ``x`` [B, N, F], ``mask`` bool [B, N]."""
        _checks.check_tokens("SequenceClassifier", x, mask)
        y = self.encoder(self.embed(x) + self.position[: x.shape[1]], mask)
        count = x.shape[1] if mask is None else mask.sum(1, keepdim=True).clamp(min=1)
        return self.head(y.sum(1) / count)

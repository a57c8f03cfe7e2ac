"""Classifiers: an embedding, an encoder, the mean over real tokens, a linear head.

Shapes: B batch, N tokens, F features, D width, C classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError
from flashmix.models.encoder import Encoder
from flashmix.ops import _checks


class _Classifier(nn.Module):
    """The positions and the pooling, which the tokens of a sequence share."""

    position: nn.Parameter
    position_std: ClassVar[float]
    """Standard deviation of the learned positions' initial values."""
    sharding: Any = None
    """How positions and mean are taken across ranks, set by ``flashmix.parallel``."""

    def reset_parameters(self) -> None:
        """The positions' initial values; other modules have the other parameters."""
        nn.init.normal_(self.position, std=self.position_std)

    def positions(self, tokens: Tensor) -> Tensor:
        """The learned positions [N, D] of ``tokens`` [B, N, ...]."""
        if self.sharding is not None:
            return self.sharding.positions(self, tokens)
        seq_len, max_len = tokens.shape[1], len(self.position)
        if seq_len > max_len:
            raise ArgumentError(
                f"{type(self).__name__}: at most max_len = {max_len} tokens fit, got {seq_len}"
            )
        return self.position[:seq_len]

    def pool(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over the real tokens of ``y`` [B, N, D], whose padding is zero."""
        if self.sharding is not None:
            return self.sharding.pool(y, mask)
        if mask is None:
            return y.mean(1)
        return y.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class SequenceClassifier(_Classifier):
    """Classifies sequences of feature vectors.

    Args:
        features: width F of an input token.
        max_len: longest sequence, in tokens.
        classes: number of classes C.
        dim, depth, mixers, num_heads, unpad: see :class:`Encoder`.
    """

    position_std = 0.3

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
        unpad: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.position = nn.Parameter(torch.empty(max_len, dim))
        self.reset_parameters()
        self.encoder = Encoder(dim, depth, mixers, num_heads=num_heads, unpad=unpad)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits [B, C] of ``x`` [B, N, F], ``mask`` bool [B, N]."""
        _checks.check_tokens("SequenceClassifier", x, mask, self.embed.in_features)
        y = self.encoder(self.embed(x) + self.positions(x), mask)
        return self.head(self.pool(y, mask))


class TextClassifier(_Classifier):
    """Classifies token ids; BERT's layout: positions, LayerNorm, blocks that normalise last.

    With ``vocabulary`` 30,522, ``dim`` 128, ``depth`` 2 and two heads it is of BERT-tiny's size
    (Turc et al. 2019), without BERT's segment embeddings and pooler.

    Args:
        vocabulary: number of token ids.
        max_len: longest sequence, in tokens.
        classes: number of classes C.
        dim, depth, mixers, num_heads, impl, unpad: see :class:`Encoder`.
    """

    position_std = 0.02

    def __init__(
        self,
        vocabulary: int,
        max_len: int,
        classes: int,
        *,
        dim: int = 128,
        depth: int = 2,
        mixers: str = "attention",
        num_heads: int | None = None,
        impl: str = "auto",
        unpad: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.empty(max_len, dim))
        self.reset_parameters()
        self.norm = nn.LayerNorm(dim)
        self.encoder = Encoder(
            dim, depth, mixers, num_heads=num_heads, norm_first=False, impl=impl, unpad=unpad
        )
        self.head = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits [B, C] of token ids int [B, N], ``mask`` bool [B, N]."""
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ArgumentError(
                f"TextClassifier: tokens must be integers [B, N], got {tokens.dtype} "
                f"{list(tokens.shape)}"
            )
        x = self.norm(self.embed(tokens) + self.positions(tokens))
        return self.head(self.pool(self.encoder(x, mask), mask))

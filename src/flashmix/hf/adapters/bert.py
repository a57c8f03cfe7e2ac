"""Self-attention as BERT's, of models that compute its scores in their own code.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flashmix.errors import ModelError
from flashmix.hf.adapters.base import Adapter


class BertAttention(Adapter):
    """Projections query, key and value, scores over sqrt(dh), an additive mask of the tokens."""

    query: Any
    key: Any
    value: Any
    dropout: Any
    num_attention_heads: int

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Mix ``hidden_states`` [B, N, D]; ``attention_mask`` additive [B, 1, 1, N]."""
        given = [value for value in (*args, *options.values()) if value is not None]
        if any(value is True for value in given):
            raise ModelError(f"{type(self).__name__}: mixers hold no attention weights to return")
        if any(not isinstance(value, bool) for value in given):
            raise ModelError(
                f"{type(self).__name__}: this is cross-attention or has a cache, and mixers mix "
                "the tokens themselves"
            )
        y = self.attend(
            self.query(hidden_states),
            self.key(hidden_states),
            self.value(hidden_states),
            self.num_attention_heads,
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
        )
        return y, None

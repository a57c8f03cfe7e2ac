"""MPNet's self-attention, which adds relative positions to its scores.

It has absolute positions in its embeddings besides, which mixers without scores have alone.

Shapes: B batch, H heads, N tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flashmix.hf.adapters.base import Adapter


class MPNetAttention(Adapter):
    """MPNetSelfAttention."""

    q: Any
    k: Any
    v: Any
    o: Any
    dropout: Any
    num_attention_heads: int

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor]:
        """Mix ``hidden_states`` [B, N, D]; ``position_bias`` [1, H, N, N]."""
        y = self.attend(
            self.q(hidden_states),
            self.k(hidden_states),
            self.v(hidden_states),
            self.num_attention_heads,
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            position_bias=position_bias if self.reads_scores else None,
            **options,
        )
        return (self.o(y),)

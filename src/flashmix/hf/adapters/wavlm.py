"""WavLM's self-attention, which adds gated relative positions to its scores.

The first layer makes them for all, and each gates them by its own tokens. Mixers without scores
have the model's convolutional positions alone.

Shapes: B batch, H heads, N tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.wavlm.modeling_wavlm import WavLMAttention as OwnAttention

from flashmix.hf.adapters.base import Adapter


class WavLMAttention(Adapter, OwnAttention):
    """WavLMAttention, whose own code makes the positions."""

    positional = ("gru_rel_pos_linear",)
    positional_parameters = ("gru_rel_pos_const",)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        index: int = 0,
        **options: Any,
    ) -> tuple[Tensor, None, Tensor | None]:
        """Mix ``hidden_states`` [B, N, D]; ``attention_mask`` [B, N]."""
        n = hidden_states.shape[1]
        if position_bias is None and self.positions_read:
            position_bias = self.compute_bias(n, n)  # [H, N, N]
        bias = None
        if self.reads_scores:
            heads = hidden_states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            gates = self.gru_rel_pos_linear(heads).unflatten(-1, (2, 4)).sum(-1).sigmoid()
            first, second = gates.chunk(2, dim=-1)  # [B, H, N, 1]
            bias = (first * (second * self.gru_rel_pos_const - 1.0) + 2.0) * position_bias
        y = self.attend(
            self.q_proj(hidden_states),
            self.k_proj(hidden_states),
            self.v_proj(hidden_states),
            self.num_heads,
            None if attention_mask is None else attention_mask.bool(),
            dropout=self.dropout if self.training else 0.0,
            position_bias=bias,
            **options,
        )
        return self.out_proj(y), None, position_bias

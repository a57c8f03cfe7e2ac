"""The disentangled self-attention of DeBERTa; see :mod:`flashmix.hf.adapters.deberta_v2`.

Shapes: B batch, H heads, N tokens, D width.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention

from flashmix.errors import ModelError
from flashmix.hf.adapters.base import Adapter
from flashmix.hf.adapters.deberta_v2 import tokens_of_pairs


class DebertaAttention(Adapter, DisentangledSelfAttention):
    """DisentangledSelfAttention of DeBERTa, with its fused projection as three of their own."""

    positional = ("pos_proj", "pos_q_proj")
    query_proj: nn.Linear
    key_proj: nn.Linear
    value_proj: nn.Linear

    @classmethod
    def adapt(cls, module: Any, config: Any) -> Self | None:
        """``module`` as an adapter; None where it mixes heads ("talking heads")."""
        if module.head_logits_proj is not None:
            return None
        made = super().adapt(module, config)
        assert made is not None
        made.absolute = getattr(config, "position_biased_input", True)
        # Each head has its own q, k and v side by side.
        heads = module.in_proj.weight.detach().unflatten(0, (module.num_attention_heads, 3, -1))
        biases = {"query_proj": module.q_bias, "key_proj": None, "value_proj": module.v_bias}
        for index, (name, bias) in enumerate(biases.items()):
            weight = heads[:, index].flatten(0, 1).clone()
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
            linear.weight = nn.Parameter(weight, module.in_proj.weight.requires_grad)
            if bias is not None:
                linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
            setattr(made, name, linear.train(module.training))
        del made.in_proj, made.q_bias, made.v_bias
        return made

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Mix ``hidden_states`` [B, N, D]; ``attention_mask`` [B, 1, N, N], of pairs of tokens."""
        where = type(self).__name__
        if query_states is not None:
            raise ModelError(f"{where}: mixers mix the tokens themselves, and it got query_states")
        q, k = self.query_proj(hidden_states), self.key_proj(hidden_states)
        terms = 1 + len(self.pos_att_type)
        scaling = (self.attention_head_size * terms) ** -0.5
        bias = None
        if self.relative_attention and self.reads_scores and relative_pos is not None:
            added = self.disentangled_att_bias(
                self.transpose_for_scores(q) * scaling,
                self.transpose_for_scores(k),
                relative_pos,
                # Its code divides in place, which must never reach the model's own embeddings.
                self.pos_dropout(rel_embeddings).clone(),
                terms,
            )
            bias = added if isinstance(added, torch.Tensor) else None
        y = self.attend(
            q,
            k,
            self.value_proj(hidden_states),
            self.num_attention_heads,
            tokens_of_pairs(where, attention_mask),
            dropout=self.dropout.p if self.training else 0.0,
            scaling=scaling,
            position_bias=bias,
            output_attentions=output_attentions,
        )
        return y, None

"""The disentangled self-attention of DeBERTa-v2 and v3.

Its scores hold, beside q k^T, products of q with embeddings of the distance (c2p), and of k with
them (p2c), which are added as a bias. Mixers without scores need the tokens alone.

Shapes: B batch, H heads, N tokens, D width.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from flashmix.errors import ModelError
from flashmix.hf.adapters.base import Adapter


def tokens_of_pairs(where: str, mask: Tensor) -> Tensor:
    """The real tokens, bool [B, N], of a mask [B, 1, N, N] of the pairs of them.

    Raises:
        ModelError: the mask is not that of pairs of real tokens.
    """
    pairs = mask.bool()
    real = pairs.diagonal(dim1=-2, dim2=-1)[:, 0]
    plain = (pairs == (real[:, None, :, None] & real[:, None, None, :])).all()
    if torch.compiler.is_compiling() or mask.is_cuda:
        torch._assert_async(plain, "flashmix: attention_mask holds more than padding")
    elif not mask.is_meta and not plain:
        raise ModelError(
            f"{where}: attention_mask holds more than padding, which mixers do not take; pass "
            "[B, N] with 1 or True at real tokens"
        )
    return real


class DebertaV2Attention(Adapter, DisentangledSelfAttention):
    """DisentangledSelfAttention of DeBERTa-v2, whose own code computes the bias."""

    positional = ("pos_key_proj", "pos_query_proj")

    @classmethod
    def adapt(cls, module: nn.Module, config: Any) -> Self | None:
        """``module`` as an adapter."""
        made = super().adapt(module, config)
        assert made is not None
        made.absolute = getattr(config, "position_biased_input", True)
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
        heads = self.num_attention_heads
        q, k = self.query_proj(hidden_states), self.key_proj(hidden_states)
        terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        bias = None
        if self.relative_attention and self.reads_scores:
            bias = self.disentangled_attention_bias(
                self.transpose_for_scores(q, heads),
                self.transpose_for_scores(k, heads),
                relative_pos,
                self.pos_dropout(rel_embeddings),
                terms,
            ).unflatten(0, (-1, heads))
        y = self.attend(
            q,
            k,
            self.value_proj(hidden_states),
            heads,
            tokens_of_pairs(where, attention_mask),
            dropout=self.dropout.p if self.training else 0.0,
            scaling=(self.attention_head_size * terms) ** -0.5,
            position_bias=bias,
            output_attentions=output_attentions,
        )
        return y, None

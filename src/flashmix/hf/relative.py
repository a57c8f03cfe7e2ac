"""MPNet's self-attention, made to go through transformers' attention interface.

MPNet adds relative positions to its scores beside the absolute positions of its embeddings. Mixers
without scores have the absolute ones alone.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from flashmix.hf.attention import mixer_of
from flashmix.mixers import Mixer

BIAS = "relative_attention_bias"


class RelativeSelfAttention(nn.Module):
    """MPNetSelfAttention with its weights under their own names; only the mixing is elsewhere."""

    def __init__(self, attention: Any, config: Any) -> None:
        super().__init__()
        self.config = config
        self.num_heads = attention.num_attention_heads
        self.q, self.k, self.v, self.o = attention.q, attention.k, attention.v, attention.o
        self.dropout = attention.dropout
        self.train(attention.training)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor]:
        """Mix ``hidden_states`` [B, N, D]; ``attention_mask`` bool [B, N]."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        q, k, v = (
            project(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        mixer = mixer_of(self)
        if mixer is not None and "k" not in mixer.reads:
            position_bias = None  # no scores to add it to
        y, _weights = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation](
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            position_bias=position_bias,
            **options,
        )
        return (self.o(y.flatten(2)),)


def adapted(module: nn.Module, config: Any) -> nn.Module | None:
    """``module`` as one that goes through the attention interface, where this file knows how."""
    from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

    return RelativeSelfAttention(module, config) if isinstance(module, MPNetSelfAttention) else None


def freeze_unread_positions(model: nn.Module) -> None:
    """Stop training relative positions that no layer reads; a gradient would never reach them."""
    layers = [m for m in model.modules() if isinstance(m, RelativeSelfAttention)]
    if not layers or any("k" in cast(Mixer, m.mixer).reads for m in layers):
        return
    for path, parameter in model.named_parameters():
        if BIAS in path.split("."):
            parameter.requires_grad_(False)

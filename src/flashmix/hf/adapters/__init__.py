"""Attention modules of transformers that compute their scores themselves, made to take a mixer.

Most call transformers' attention interface, and need nothing. One that does not is listed here with
its adapter: a module with the same weights under the same names that calls it.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from flashmix.hf.adapters.base import Adapter, freeze_unread_positions

__all__ = ["ADAPTERS", "Adapter", "adapted", "freeze_unread_positions"]

ADAPTERS = {
    "modeling_big_bird.BigBirdSelfAttention": "bert:BertAttention",
    "modeling_blip_text.BlipTextSelfAttention": "bert:BertAttention",
    "modeling_deberta.DisentangledSelfAttention": "deberta:DebertaAttention",
    "modeling_deberta_v2.DisentangledSelfAttention": "deberta_v2:DebertaV2Attention",
    "modeling_flava.FlavaSelfAttention": "bert:BertAttention",
    "modeling_megatron_bert.MegatronBertSelfAttention": "bert:BertAttention",
    "modeling_mpnet.MPNetSelfAttention": "mpnet:MPNetAttention",
    "modeling_rembert.RemBertSelfAttention": "bert:BertAttention",
    "modeling_tapas.TapasSelfAttention": "bert:BertAttention",
    "modeling_vilt.ViltSelfAttention": "bert:BertAttention",
    "modeling_visual_bert.VisualBertSelfAttention": "bert:BertAttention",
    "modeling_wavlm.WavLMAttention": "wavlm:WavLMAttention",
}
"""The adapter of an attention module, by the module's class; files and classes of this package."""


def adapted(module: nn.Module, config: Any) -> Adapter | None:
    """``module`` as one that goes through the attention interface; None without an adapter."""
    kind = type(module)
    if not kind.__module__.startswith("transformers.models."):
        return None
    entry = ADAPTERS.get(f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}")
    if entry is None:
        return None
    file, _, name = entry.partition(":")
    adapter: type[Adapter] = getattr(importlib.import_module(f"{__name__}.{file}"), name)
    return adapter.adapt(module, config)

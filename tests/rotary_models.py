"""Tiny models that rotate q and k, with weights large enough that attention is far from uniform."""

from __future__ import annotations

import copy
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from hf_models import transformers

WORDS = 60
COMMON = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
IDS = {"bos_token_id": 2, "eos_token_id": 3}
MODERN = {**IDS, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 6}
GEMMA = {
    "use_bidirectional_attention": True,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 5,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "ModernBert": {**COMMON, **MODERN, "global_attn_every_n_layers": 2},
    "EuroBert": {**COMMON, **IDS, "num_key_value_heads": 1},
    "NomicBert": COMMON,
    "Gte": COMMON,
    "JinaEmbeddingsV3": COMMON,
    "Esm": {**COMMON, "position_embedding_type": "rotary", "mask_token_id": 2},
    "Esmc": COMMON,
    "Gemma3Text": {**COMMON, **GEMMA, "num_key_value_heads": 1, "head_dim": 16},
    "DINOv3ViT": {
        **{key: COMMON[key] for key in {*COMMON} - {"vocab_size", "pad_token_id"}},
        "image_size": 16,
        "patch_size": 4,
        "num_register_tokens": 2,
        "key_bias": True,
    },
}


def build(name: str, **options: Any) -> nn.Module:
    """A seeded float64 model of a family, in eval mode."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**ENCODERS[name], **options})
    model = getattr(transformers, f"{name}Model")(config).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.4 * noise
    return model


def batch(name: str, *lengths: int) -> dict[str, Tensor]:
    """Seeded inputs of these lengths; images where the model takes them."""
    generator = torch.Generator().manual_seed(0)
    if name == "DINOv3ViT":
        pixels = torch.randn(len(lengths), 3, 16, 16, generator=generator, dtype=torch.float64)
        return {"pixel_values": pixels}
    ids = torch.randint(5, WORDS, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}


def hidden(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The real tokens of the last hidden state, [T, D]."""
    y: Tensor = model(**inputs).last_hidden_state
    mask = inputs.get("attention_mask")
    return y.flatten(0, 1) if mask is None else y[mask.bool()]


def randomised(model, seed=3):
    """The mixers' own parameters, moved from where they start."""
    generator = torch.Generator().manual_seed(seed)
    for path, parameter in model.named_parameters():
        if ".mixer." in path:
            parameter.data += torch.randn(parameter.shape, generator=generator).double()
    return model


@torch.no_grad()
def with_attention(model, inputs, attend, read=None):
    """The outputs of an unswapped model with ``attend(layer, x, q, k, v, scaling)`` in its layers.

    x [B, N, D] are the tokens that the layer got; attend gives [B, H, N, dh].
    """
    model, tokens, layers = copy.deepcopy(model), {}, count()

    def keep(module, args, options):
        tokens[module] = args[0] if args else options["hidden_states"]

    def attention(module, q, k, v, mask=None, scaling=None, **options):
        y = attend(next(layers), tokens[module], q, k, v, scaling or q.shape[-1] ** -0.5)
        return y.transpose(1, 2).contiguous(), None

    for module in model.modules():
        if "ttention" in type(module).__name__:
            module.register_forward_pre_hook(keep, with_kwargs=True)
    transformers.AttentionInterface.register("of_a_test", attention)
    transformers.AttentionMaskInterface.register("of_a_test", lambda **_: None)
    model.config._attn_implementation = "of_a_test"
    model.config.use_cache = False
    return hidden(model, inputs) if read is None else read(model(**inputs))

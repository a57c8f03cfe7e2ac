"""The encoders that suite ``profile`` takes: named configurations, folders and hub ids.

Weights are random: speed does not depend on them. A config is kept as JSON text, so that a row
holds all that its model was built from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from typing import Any

from flashmix.errors import ArgumentError, unknown_choice
from flashmix.hf.configs import read_config
from flashmix.hf.saving import RECORD

IMAGE, PATCH = 224, 16


def _bert(width: int, depth: int, heads: int, **others: Any) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
        **others,
    }


def _vit(width: int, heads: int) -> dict[str, Any]:
    sizes = _bert(width, 12, heads, model_type="vit", image_size=IMAGE, patch_size=PATCH)
    sizes.pop("max_position_embeddings")
    return sizes


def _esm(width: int, depth: int) -> dict[str, Any]:
    return _bert(
        width,
        depth,
        20,
        model_type="esm",
        vocab_size=33,
        pad_token_id=1,
        mask_token_id=32,
        token_dropout=True,
        position_embedding_type="rotary",
        max_position_embeddings=1026,
    )


NAMED: dict[str, dict[str, Any]] = {
    "bert-tiny": _bert(128, 2, 2),
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 24, 16),
    "minilm-l3": _bert(384, 3, 12),
    "minilm-l6": _bert(384, 6, 12),
    "minilm-l12": _bert(384, 12, 12),
    "distilbert": {
        "model_type": "distilbert",
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
    },
    "roberta-base": _bert(
        768,
        12,
        12,
        model_type="roberta",
        vocab_size=50_265,
        type_vocab_size=1,
        max_position_embeddings=514,
        pad_token_id=1,
    ),
    "modernbert-base": _bert(
        768,
        22,
        12,
        model_type="modernbert",
        vocab_size=50_368,
        intermediate_size=1152,
        max_position_embeddings=8192,
    ),
    "esm2-8m": _esm(320, 6),
    "esm2-35m": _esm(480, 12),
    "vit-s-16": _vit(384, 6),
    "vit-b-16": _vit(768, 12),
}
"""What transformers' config classes take, by the names that people use."""

SIZES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}
"""Fields of a config that hold its sizes, and what DistilBERT calls them."""
LEFT_OUT = {
    *("transformers_version", "architectures", "dtype", "torch_dtype", "auto_map"),
    *("id2label", "label2id", "problem_type", "_name_or_path", "name_or_path"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
}
"""Fields that say nothing of the encoder's speed."""
ATTENTION = "attn_implementation"
"""The entry that is "eager" where transformers has no other attention for a model."""
OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")
"""Types whose positions begin behind the padding's."""
LARGEST_CONFIG = 100_000


@dataclass(frozen=True)
class Sizes:
    """What the cases of an encoder need to know of it.

    Attributes:
        dim, depth, heads, mlp: W, layers, H, and the width of the MLP.
        positions: the longest text that it has positions for; None for pictures.
        tokens: of a picture, the class token among them; None for texts.
        fused: whether transformers runs its attention by SDPA; else eager is all there is.
    """

    dim: int
    depth: int
    heads: int
    mlp: int
    positions: int | None
    tokens: int | None
    fused: bool = True

    @property
    def flops_per_token(self) -> float:
        """Operations of the projections and MLPs for a token, which is what grows with N."""
        return 2.0 * self.depth * (4 * self.dim**2 + 2 * self.dim * self.mlp)


def named_config(name: str) -> str:
    """The config of a named encoder as text.

    Raises:
        ArgumentError: there is none of that name.
    """
    if name not in NAMED:
        raise unknown_choice("model", name, NAMED)
    return _text(NAMED[name])


def model_config(model: str | PathLike[str]) -> str:
    """The config of a named encoder, or of one in a folder or on the hub, as text.

    Raises:
        ArgumentError: there is none, or it is none that can be profiled.
        MissingDependencyError: transformers is not installed.
    """
    if str(model) in NAMED:
        return named_config(str(model))
    try:
        config, _ = read_config(model)
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(
            f"no model {str(model)!r} ({str(error).splitlines()[0]}); expected a folder with "
            f"config.json, a hub id, or one of {', '.join(NAMED)}"
        ) from None
    return config_text(config, str(model))


def config_text(config: Any, name: str) -> str:
    """A config of transformers as text, its sizes among it; ``name`` is the model's in errors.

    Raises:
        ArgumentError: it is no encoder with attention, or was swapped already.
    """
    if hasattr(config, RECORD):
        raise ArgumentError(
            f"{name} was swapped already; profile the model that it was made from, with its "
            "pattern as --mixers"
        )
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise ArgumentError(f"{name} is a decoder, or has one; flashmix profiles encoders")
    inner = [key for key in config.sub_configs if getattr(config, key, None) is not None]
    if inner:
        raise ArgumentError(
            f"{name} holds several models ({', '.join(inner)}); profile one encoder at a time"
        )
    fields = {key: value for key, value in config.to_diff_dict().items() if key not in LEFT_OUT}
    fields["model_type"] = config.model_type
    if not _takes_sdpa(config):
        fields[ATTENTION] = "eager"
    for key in (*SIZES, "max_position_embeddings", "image_size", "patch_size", "pad_token_id"):
        raw = config.attribute_map.get(key, key)
        if getattr(config, raw, None) is not None:
            fields[raw] = getattr(config, raw)
    text = _text(fields)
    if len(text) > LARGEST_CONFIG:
        raise ArgumentError(f"the config of {name} has {len(text)} characters, which is too long")
    sizes_of(text, name)
    return text


def _takes_sdpa(config: Any) -> bool:
    from flashmix.hf.interface import transformers

    mapping = transformers().MODEL_MAPPING
    return type(config) not in mapping or bool(mapping[type(config)]._supports_sdpa)


def _text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)


def sizes_of(config: str, name: str = "the model") -> Sizes:
    """The sizes in a config's text.

    Raises:
        ArgumentError: one is missing, or is none.
    """
    fields = json.loads(config)
    found = {key: fields.get(key, fields.get(other)) for key, other in SIZES.items()}
    for key, value in found.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(
                f"{name}: its config has no {key} that is a whole number (model type "
                f"{fields.get('model_type')!r}); flashmix profiles encoders whose layers are alike"
            )
    image, patch = fields.get("image_size"), fields.get("patch_size")
    tokens = (
        (image // patch) ** 2 + 1 if isinstance(image, int) and isinstance(patch, int) else None
    )
    positions = fields.get("max_position_embeddings")
    if isinstance(positions, int) and fields["model_type"] in OFFSET:
        positions -= (fields.get("pad_token_id") or 0) + 1
    return Sizes(
        dim=found["hidden_size"],
        depth=found["num_hidden_layers"],
        heads=found["num_attention_heads"],
        mlp=found["intermediate_size"],
        positions=None if tokens else positions,
        tokens=tokens,
        fused=fields.get(ATTENTION) != "eager",
    )


def build_config(config: str, seq_len: int) -> Any:
    """The config of transformers, its table of positions as long as ``seq_len`` asks for."""
    from flashmix.hf.interface import transformers

    fields, sizes = json.loads(config), sizes_of(config)
    fields.pop(ATTENTION, None)
    if sizes.positions is not None and sizes.positions < seq_len:
        fields["max_position_embeddings"] += seq_len - sizes.positions
    return transformers().CONFIG_MAPPING[fields["model_type"]].from_dict(fields)

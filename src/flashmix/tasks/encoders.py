"""Encoders to train: published ones and blank ones, with the mixers that a pattern names.

Shapes: B batch, N tokens, D width, C classes, K masked tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmix.errors import ArgumentError, missing_extra
from flashmix.mixers import parse_pattern
from flashmix.tasks.batches import Batch
from flashmix.tasks.tokens import Special


@dataclass(frozen=True)
class Arch:
    """Layers, width and heads of a BERT (Turc et al. 2019)."""

    layers: int
    dim: int
    heads: int


ARCHS = {
    "bert-tiny": Arch(2, 128, 2),
    "bert-mini": Arch(4, 256, 4),
    "bert-small": Arch(4, 512, 8),
    "bert-medium": Arch(8, 512, 8),
}
POSITIONS = 512
DROPOUT = 0.1
POOLINGS = ("mean", "cls")
VANILLA = {"vanilla fused": "sdpa", "vanilla eager": "eager"}
"""The model as published, by the attention implementation that transformers gives it."""


class Classifier(nn.Module):
    """A Hugging Face classifier, called with a batch for its summed cross-entropy."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def logits(self, batch: Batch) -> Tensor:
        """[B, C]."""
        return self.encoder(input_ids=batch.ids, attention_mask=batch.mask).logits

    def forward(self, batch: Batch) -> Tensor:
        """Summed cross-entropy, a scalar."""
        return F.cross_entropy(self.logits(batch).float(), batch.target, reduction="sum")


class MaskedModel(nn.Module):
    """A BERT with its vocabulary head, applied to the masked positions alone."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def logits(self, batch: Batch) -> Tensor:
        """[B, K, vocabulary]."""
        assert batch.places is not None
        hidden = self.encoder.bert(input_ids=batch.ids, attention_mask=batch.mask)[0]
        places = batch.places[..., None].expand(-1, -1, hidden.shape[-1])
        return self.encoder.cls(hidden.gather(1, places))

    def forward(self, batch: Batch) -> Tensor:
        """Summed cross-entropy of the hidden tokens, a scalar."""
        logits = self.logits(batch).flatten(0, 1)
        return F.cross_entropy(logits.float(), batch.target.flatten(), reduction="sum")


def blank_config(arch: str, special: Special, **options: Any) -> Any:
    """The configuration of a BERT of a known size; ``options`` are transformers' own."""
    transformers = _transformers()
    size = ARCHS[arch]
    return transformers.BertConfig(
        vocab_size=special.size,
        hidden_size=size.dim,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.dim,
        max_position_embeddings=POSITIONS,
        pad_token_id=special.pad,
        **options,
    )


def masked_model(arch: str, mixers: str, special: Special, seed: int, dropout: float) -> Any:
    """A blank BERT with vocabulary head, its layers' mixers swapped.

    Raises:
        ArgumentError: no such size, or a pattern that does not fit it.
        MissingDependencyError: transformers is not installed.
    """
    from flashmix.hf import swap

    transformers = _transformers()
    torch.manual_seed(seed)
    config = blank_config(
        arch, special, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    return swap(transformers.BertForMaskedLM(config), mixers)


def classifier(
    model: str,
    mixers: str,
    classes: int,
    special: Special,
    seed: int,
    pooling: str = "mean",
    *,
    unpad: bool = False,
) -> Any:
    """A Hugging Face classifier with its layers' mixers swapped.

    Args:
        model: a size in ARCHS for a blank one, or a folder or hub id; safetensors only.
        mixers: a pattern over layers, or a key of VANILLA to leave the model as it is.
        classes: number of classes C.
        special: the vocabulary of a blank one.
        seed: of the weights that are new.
        pooling: what the head reads, one of POOLINGS: the mean of the real tokens, or [CLS].
        unpad: remove padding before the first layer; a vanilla model keeps it.

    Raises:
        ArgumentError: no such model, one whose own mixers differ, or a pattern that does not fit.
        ModelError: the model cannot be swapped, or not unpadded.
        MissingDependencyError: transformers is not installed.
    """
    from flashmix.hf import pool_mean, swap

    transformers = _transformers()
    auto = transformers.AutoModelForSequenceClassification
    implementation = VANILLA.get(mixers, "sdpa")
    torch.manual_seed(seed)
    if model in ARCHS:
        config = blank_config(model, special, num_labels=classes)
        encoder = auto.from_config(config, attn_implementation=implementation)
    else:
        encoder = _published(auto, model, classes, mixers, implementation)
    if mixers not in VANILLA:
        encoder = swap(encoder, {} if _has_mixers(encoder, mixers) else mixers, unpad=unpad)
    return pool_mean(encoder) if pooling == "mean" else encoder


def _published(auto: Any, model: str, classes: int, mixers: str, implementation: str) -> Any:
    """The model at a folder or hub id, swapped where its config says so."""
    from flashmix import hf
    from flashmix.hf.configs import read_config
    from flashmix.hf.saving import RECORD

    try:
        config, _ = read_config(model, num_labels=classes)
        if hasattr(config, RECORD):
            if mixers in VANILLA:
                raise ArgumentError(f"{model} was swapped; it is no vanilla model any more")
            return hf.from_pretrained(
                model,
                "AutoModelForSequenceClassification",
                num_labels=classes,
                dtype=torch.float32,
            )
        return auto.from_pretrained(
            model,
            config=config,
            dtype=torch.float32,  # trained in full; autocast narrows where it may
            attn_implementation=implementation,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(
            f"no model at {model!r} ({str(error).splitlines()[0]}); expected a folder or hub id "
            f"with safetensors, or one of {', '.join(ARCHS)}"
        ) from None


def _has_mixers(encoder: Any, mixers: str) -> bool:
    """Whether the encoder was swapped to this pattern already."""
    from flashmix.hf.saving import RECORD

    record = getattr(encoder.config, RECORD, None)
    if record is None:
        return False
    own = record["mixers"]
    return own == [str(spec) for spec in parse_pattern(mixers, len(own))]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", "finetune", "training encoders") from None
    return transformers


def quiet_transformers() -> None:
    """Keep the loading bars of transformers, and its note on new heads, out of our output."""
    logging = _transformers().utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()

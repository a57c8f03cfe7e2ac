"""Hugging Face encoders: their own layers, swapped or not, or another mixer on their hidden states.

Shapes: B texts, N tokens, D width, H heads, dh width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flashmix
from flashmix.errors import ArgumentError, FlashmixError, missing_extra
from flashmix.hf.configs import read_config
from flashmix.hf.saving import RECORD
from flashmix.mixers import parse_pattern
from flashmix.report.pictures.captions import Shown
from flashmix.report.pictures.inputs import count_texts
from flashmix.report.pictures.layers import Layer, mixer_layer
from flashmix.report.pictures.subject import Subject
from flashmix.report.pictures.watching import watched_layers


def encoder_subject(
    path: Path,
    texts: Sequence[str],
    *,
    seq_len: int | None = None,
    mixers: str | None = None,
    seed: int = 0,
    noun: str = "text",
) -> Subject:
    """The layers of an encoder on texts.

    Args:
        path: a folder of transformers with config, tokenizer and safetensors weights, or one that
            holds a model swapped by ``flashmix.swap``.
        texts: cut to ``seq_len`` tokens, or to the shortest, so that none is padded.
        seq_len: tokens, with the special ones.
        mixers: a mixer, or a pattern over layers, to be shown on the hidden states that enter the
            encoder's layers, instead of these layers.
        seed: of the weights of ``mixers``.
        noun: what captions call a text.

    Raises:
        ArgumentError: the texts are too short, or the folder holds no encoder of text.
        FlashmixError: the folder cannot be loaded.
        MissingDependencyError: transformers is not installed.
    """
    model, tokenizer = _load(path)
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    ids = _token_ids(tokenizer, texts, seq_len, longest)
    labels = tuple(tokenizer.convert_ids_to_tokens(ids[0].tolist()))
    layers = watched_layers(model, lambda: model(input_ids=ids))
    if not layers:
        raise ArgumentError(
            f"{path}: no layer of {type(model).__name__} attends through transformers' attention "
            "interface; its layers cannot be shown"
        )
    size = f"N = {ids.shape[1]} tokens"
    title = path.resolve().name
    if mixers is None:
        what = "Weights from the checkpoint."
    else:
        what = (
            f"What enters are the hidden states of {title}; of the mixers nothing is trained "
            f"(seed {seed})."
        )
        layers = _replaced(layers, mixers, seed)
        title = mixers
    shown = Shown(
        title=title,
        one=f"a {noun} ({size})",
        all=f"{count_texts(len(ids), noun)} ({size})",
        weights=what,
        labels=labels,
        leaving="" if mixers else "What leaves is taken before the output projection.",
        tone=None if mixers else "attention",
    )
    return Subject(layers, shown)


def _replaced(layers: Sequence[Layer], mixers: str, seed: int) -> list[Layer]:
    """Other mixers on what enters the layers."""
    dim, heads = layers[0].x.shape[-1], layers[0].values.shape[1]
    specs = parse_pattern(mixers, len(layers))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = [spec.build(dim, num_heads=heads) for spec in specs]
    return [mixer_layer(new, old.x, old.name) for new, old in zip(built, layers, strict=True)]


def _load(path: Path) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", "hf", "showing an encoder") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": True}
    try:
        config, _ = read_config(path, **options)
        if not getattr(config, "vocab_size", None):
            raise ArgumentError(f"{path} holds a {config.model_type}, which takes no text")
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            path, trust_remote_code=False, **options
        )
        if hasattr(config, RECORD):
            model = flashmix.from_pretrained(path, **options)
        else:
            model = transformers.AutoModel.from_pretrained(
                path, config=config, use_safetensors=True, **options
            )
    except (OSError, ValueError) as error:
        if isinstance(error, FlashmixError):
            raise
        raise FlashmixError(f"{path} cannot be loaded as an encoder: {error}") from None
    return model.eval(), tokenizer


def _token_ids(tokenizer: Any, texts: Sequence[str], seq_len: int | None, longest: int) -> Tensor:
    """Token ids [B, N] without padding; special tokens kept."""
    found = [tokenizer(text, truncation=True, max_length=longest).input_ids for text in texts]
    shortest = min(map(len, found), default=0)
    n = shortest if seq_len is None else seq_len
    if not 0 < n <= shortest:
        raise ArgumentError(
            f"text: needs at least {max(1, n)} tokens, got one of {shortest}; give longer texts or "
            "a smaller --seq-len"
        )
    return torch.tensor(
        [tokenizer(text, truncation=True, max_length=n).input_ids for text in texts]
    )

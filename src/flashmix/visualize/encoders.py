"""Hugging Face encoders: their own layers, swapped or not, or another mixer on their hidden states.

Shapes: B texts, N tokens, D width, H heads, dh width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError, FlashmixError, missing_extra
from flashmix.hf import from_pretrained, structure
from flashmix.hf.configs import read_config
from flashmix.hf.finding import find_layers
from flashmix.hf.saving import RECORD
from flashmix.mixers import Hybrid, Mixer, parse_pattern
from flashmix.mixers._base import QKVMixer
from flashmix.mixers._heads import Heads
from flashmix.visualize.inputs import count_texts
from flashmix.visualize.layers import Layer, layer_names, mixer_layer
from flashmix.visualize.matrices import fourier_matrices, hybrid_parts
from flashmix.visualize.picture import Shown
from flashmix.visualize.subject import Subject


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
            model = from_pretrained(path, **options)
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


WATCHED = "mixers_watched"
"""A name without "flash", which transformers would take for a flash kernel on the hub."""


@dataclass(frozen=True, eq=False)
class Mixing:
    """One call: values [B, H, N, dh], the first text's weights [H, N, N], result [B, N, D]."""

    values: Tensor
    weights: Tensor | None
    y: Tensor


Noted = dict[nn.Module, Mixing]
"""By the attention module, or by the mixer of a swapped one."""


def watched_layers(model: Any, run: Callable[[], object]) -> list[Layer]:
    """A layer for each attention module, or mixer in its place, that ``run()`` calls."""
    entered: dict[nn.Module, Tensor] = {}

    def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("hidden_states")
        if isinstance(x, Tensor) and x.dim() == 3:
            entered[module] = x.detach()

    handles = [
        module.register_forward_pre_hook(enters, with_kwargs=True) for module in model.modules()
    ]
    noted: Noted = {}
    swapped = bool(getattr(model.config, RECORD, None))
    try:
        with torch.no_grad(), (_mixers if swapped else _attention)(model, noted):
            run()
    finally:
        for handle in handles:
            handle.remove()
    if not swapped:
        return [
            Layer(name, entered[module], mixing.y, mixing.values, mixing.weights)
            for name, (module, mixing) in zip(layer_names(len(noted)), noted.items(), strict=True)
        ]
    called = [layer for layer in find_layers(model) if layer.module.get_submodule("mixer") in noted]
    return [
        _swapped_layer(name, layer, entered[layer.module], noted)
        for name, layer in zip(layer_names(len(called)), called, strict=True)
    ]


def _swapped_layer(name: str, found: structure.Layer, x: Tensor, noted: Noted) -> Layer:
    """The layer of a mixer between the projections that its attention module has."""
    mixer = found.module.get_submodule("mixer")
    assert isinstance(mixer, Mixer)

    def heads(part: str, tokens: Tensor) -> Tensor:
        own = found.projections[part]
        made = tokens if own is None else found.module.get_submodule(own)(tokens)
        return made.unflatten(-1, (-1, found.structure.head_dim)).transpose(1, 2)

    def mix(tokens: Tensor) -> Tensor:
        return mixer.mix_heads(*(heads(part, tokens) for part in "qkv"))

    layer = _layer(name, mixer, x, noted)
    # Elsewhere q and k are rotated or scaled, or something is added to their scores.
    alone = found.structure.plain or (not mixer.reads and found.structure.tokens)
    return replace(layer, mix=mix) if alone else layer


def _layer(name: str, mixer: Mixer, x: Tensor, noted: Noted) -> Layer:
    """The layer of a mixer that has no projections, and those of its parts."""
    mixing = noted[mixer]
    parts = []
    for i, part in enumerate(hybrid_parts(mixer) if isinstance(mixer, Hybrid) else [], 1):
        tokens = noted[part].values.transpose(1, 2).flatten(2)
        parts.append(_layer(f"{name} part {i}".strip(), part, tokens, noted))
    # A mixer that reads a projection has lost it, and cannot be called by itself.
    alone = None if getattr(mixer, "reads", "") else mixer
    return Layer(
        name,
        x,
        mixing.y,
        mixing.values,
        mixing.weights,
        alone,
        alone,
        title=mixer.Config.name,
        pictures=mixer.pictures,
        parts=tuple(parts),
    )


@contextmanager
def _attention(model: Any, noted: Noted) -> Iterator[None]:
    """Notes what each attention module mixes."""
    from transformers import AttentionInterface

    def attend(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        scale = options.get("scaling") or q.shape[-1] ** -0.5
        if getattr(module, "is_causal", False) or mask is not None:
            raise ArgumentError(
                f"{type(model).__name__} cannot be shown: its attention adds to the scores or "
                "masks them, where a plain encoder does neither without padding"
            )
        weights = (q @ k.transpose(2, 3) * scale).softmax(-1)
        y = (weights @ v).transpose(1, 2).contiguous()
        noted[module] = Mixing(v, weights[0], y.flatten(2))
        return y, weights

    AttentionInterface.register(WATCHED, attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(WATCHED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _mixers(model: nn.Module, noted: Noted) -> Iterator[None]:
    """Notes what each mixer of a swapped model is given, between projections that it has not."""

    def note(mixer: nn.Module, args: tuple[Heads, Tensor | None], y: Tensor) -> None:
        q, k, v = args[0][:3]
        weights = None
        if isinstance(mixer, QKVMixer):
            weights = mixer.mix_with_weights(q[:1], k[:1], v[:1], None)[1][0]
        elif isinstance(mixer, Mixer) and "gains" in mixer.pictures:
            weights = fourier_matrices(v[:1])[0]
        noted[mixer] = Mixing(v, weights, y)

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, Mixer)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

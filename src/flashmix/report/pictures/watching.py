"""What the attention modules of a Hugging Face encoder mix, noted while it runs.

Shapes: B texts, N tokens, D width, H heads, dh width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError
from flashmix.hf import structure
from flashmix.hf.structure import find_layers
from flashmix.mixers import FourierAttention, Hybrid, Mixer
from flashmix.mixers._base import Heads, QKVMixer
from flashmix.report.pictures.layers import Layer, layer_names, mixer_name
from flashmix.report.pictures.matrices import fourier_matrices, hybrid_parts

RECORD = "flashmix"
"""The entry of a swapped model's config that records the swap."""

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
            Layer(name, entered[module], one.y, one.values, one.weights)
            for name, (module, one) in zip(layer_names(len(noted)), noted.items(), strict=True)
        ]
    called = [one for one in find_layers(model) if one.module.get_submodule("mixer") in noted]
    return [
        _swapped_layer(name, one, entered[one.module], noted)
        for name, one in zip(layer_names(len(called)), called, strict=True)
    ]


def _swapped_layer(name: str, found: structure.Layer, x: Tensor, noted: Noted) -> Layer:
    """The layer of a mixer between the projections that its attention module has."""
    mixer = found.module.get_submodule("mixer")
    assert isinstance(mixer, Mixer)

    def heads(part: str, tokens: Tensor) -> Tensor:
        own = found.projections[part]
        made = tokens if own is None else found.module.get_submodule(own)(tokens)
        return made.unflatten(-1, (found.num_heads, -1)).transpose(1, 2)

    def mix(tokens: Tensor) -> Tensor:
        return mixer.mix_heads(*(heads(part, tokens) for part in "qkv"))

    layer = _layer(name, mixer, x, noted)
    # Relative positions are added to scores elsewhere.
    return layer if found.relative else replace(layer, mix=mix)


def _layer(name: str, mixer: Mixer, x: Tensor, noted: Noted) -> Layer:
    """The layer of a mixer that has no projections, and those of its parts."""
    one = noted[mixer]
    parts = []
    for i, part in enumerate(hybrid_parts(mixer) if isinstance(mixer, Hybrid) else [], 1):
        tokens = noted[part].values.transpose(1, 2).flatten(2)
        parts.append(_layer(f"{name} part {i}".strip(), part, tokens, noted))
    # A mixer that reads a projection has lost it, and cannot be called by itself.
    alone = None if getattr(mixer, "reads", "") else mixer
    return Layer(
        name,
        x,
        one.y,
        one.values,
        one.weights,
        alone,
        alone,
        title=mixer_name(mixer),
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
        elif isinstance(mixer, FourierAttention):
            weights = fourier_matrices(v[:1])[0]
        noted[mixer] = Mixing(v, weights, y)

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, Mixer)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

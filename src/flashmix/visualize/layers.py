"""Mixing layers as they stand in a model: the mixer, what enters it, and what leaves.

Shapes: B batch, N tokens, D width, H heads, dh width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashmix.mixers import Hybrid, Mixer, QKVMixer
from flashmix.ops._dense import repeat_heads
from flashmix.visualize.matrices import (
    has_head_matrices,
    head_matrices,
    head_values,
    hybrid_parts,
)


@dataclass(frozen=True, eq=False)
class Layer:
    """A mixing layer in a model.

    Attributes:
        name: for titles, "layer 2" or "layer 2 part 1"; empty where there is only one layer.
        x: the tokens that enter it, [B, N, D].
        y: those that leave, [B, N, D].
        values: what each head mixes, [B, H, N, dh]; of a layer without heads the tokens
            themselves, H = 1.
        weights: the matrix of each head for the first sequence, [H, N, N], or None where the
            layer has none.
        mixer: the module, or None where there is none that could be called by itself.
        mix: what makes y of x, or None where it is not known.
        title: the mixer's name, where it is known.
        pictures: what the mixer's class declares that can be drawn of it.
        parts: of a hybrid, each as a layer.
    """

    name: str
    x: Tensor
    y: Tensor
    values: Tensor
    weights: Tensor | None
    mixer: Mixer | None = None
    mix: Callable[[Tensor], Tensor] | None = None
    title: str = ""
    pictures: frozenset[str] = frozenset()
    parts: tuple[Layer, ...] = ()


def mixer_layer(mixer: Mixer, x: Tensor, name: str = "") -> Layer:
    """The layer of a mixer that is given tokens ``x`` [B, N, D]."""
    parts: list[Layer] = []
    if isinstance(mixer, Hybrid):
        inner = hybrid_parts(mixer)
        given = x.chunk(len(inner), -1) if mixer.combine == "heads" else [x] * len(inner)
        for i, (part, tokens) in enumerate(zip(inner, given, strict=True), 1):
            parts.append(mixer_layer(part, tokens, f"{name} part {i}".strip()))
    with torch.no_grad():
        weights = head_matrices(mixer, x[:1])[0] if has_head_matrices(mixer) else None
        y = mixer(x)
        values = _values(mixer, x)
    return Layer(
        name,
        x,
        y,
        values,
        weights,
        mixer,
        mixer,
        title=mixer.Config.name,
        pictures=mixer.pictures,
        parts=tuple(parts),
    )


def _values(mixer: Mixer, x: Tensor) -> Tensor:
    if isinstance(mixer, QKVMixer):
        return repeat_heads(*mixer.heads(x, None))[1]
    if "gains" in mixer.pictures:
        return head_values(mixer, x)
    return x[:, None]


def mixer_layers(model: nn.Module, run: Callable[[], object]) -> list[Layer]:
    """A layer for each mixer of ``model``, with the tokens that reach it during ``run()``."""
    entered: dict[Mixer, Tensor] = {}

    def hear(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Mixer)
        entered[module] = inputs[0].detach()

    handles = [mixer.register_forward_pre_hook(hear) for mixer in whole_mixers(model).values()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    names = layer_names(len(entered))
    return [
        mixer_layer(mixer, x, name) for name, (mixer, x) in zip(names, entered.items(), strict=True)
    ]


def layer_names(count: int) -> list[str]:
    """Names for titles; a single layer needs none."""
    return [f"layer {i}" for i in range(1, count + 1)] if count > 1 else [""]


def whole_mixers(model: nn.Module) -> dict[str, Mixer]:
    """The mixers of a model by path, without the parts of hybrids."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, Mixer)}
    inner = {path for path in found for other in found if path.startswith(f"{other}.")}
    return {path: module for path, module in found.items() if path not in inner}

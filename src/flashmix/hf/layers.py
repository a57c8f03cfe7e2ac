"""The mixers of a model's layers: read them, and change one.

Shapes: D width.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from flashmix.errors import ArgumentError
from flashmix.hf.finding import find_layers
from flashmix.hf.saving import layer_mixer
from flashmix.hf.swap import swap
from flashmix.mixers import Mixer, MixerSpec, parse_mixer
from flashmix.models import Block

Model = TypeVar("Model", bound=nn.Module)


def mixers_of(model: nn.Module) -> list[str]:
    """The mixers of a model's layers as text, in the order of its layers.

        >>> flashmix.swap(model, "fnet*10,attention*2")
        >>> flashmix.mixers_of(model)  # ["fnet", "fnet", ..., "attention", "attention"]

    ``dict(enumerate(mixers_of(model)))`` is what :func:`flashmix.swap` takes.

    Args:
        model: an :class:`flashmix.models.Encoder` or a model that holds one or single blocks, such
            as the classifiers; or an encoder that :func:`flashmix.swap` takes, whose layers have
            "attention" as long as they have their own.

    Raises:
        ArgumentError: ``model`` is neither.
        ModelError: a module of the model could not be understood; it is named.
        MissingDependencyError: the model is not of flashmix, and transformers is not installed.
    """
    blocks = _blocks(model)
    if blocks:
        mixers = [_mixer(index, blocks) for index in range(len(blocks))]
        return [str(MixerSpec.from_config(mixer.config)) for mixer in mixers]
    return [layer_mixer(layer.module) or "attention" for layer in find_layers(_checked(model))]


def set_mixer(model: Model, layer: int, mixer: str) -> Model:
    """Give one layer of a model another mixer, in place, and return the model.

        >>> flashmix.set_mixer(model, 3, "local(window=64)")

    In an encoder of transformers this is ``flashmix.swap(model, {layer: mixer})``. In a model of
    flashmix the layer gets a new mixer with as many heads, where the text does not name a number;
    parameters that both mixers have, by name and shape, keep their values, and the others start
    anew.

    Args:
        model: as :func:`mixers_of` takes it.
        layer: its number, from 0.
        mixer: a mixer as text: "fnet", "local(window=64)", "spectral+local".

    Raises:
        ArgumentError: there is no such layer, ``mixer`` does not fit, or the layer's tokens are
            sharded across ranks.
        ModelError, MissingDependencyError: as :func:`flashmix.swap`.
    """
    blocks = _blocks(model)
    if not blocks:
        return swap(_checked(model), {layer: mixer})
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < len(blocks):
        raise ArgumentError(f"set_mixer: layers are numbered 0 to {len(blocks) - 1}, got {layer!r}")
    before = _mixer(layer, blocks)
    if before.sharding is not None:
        raise ArgumentError(
            f"set_mixer: the tokens of layer {layer} are sharded across ranks; set its mixer "
            "first, then shard the model"
        )
    after = parse_mixer(mixer).build(before.dim, num_heads=_heads(layer, blocks))
    weight = blocks[layer].norm1.weight
    after.to(weight.device, weight.dtype).train(blocks[layer].training)
    new, old = after.state_dict(), before.state_dict()
    kept = {name: old[name] for name in new if name in old and old[name].shape == new[name].shape}
    after.load_state_dict(kept, strict=False)
    blocks[layer].mixer = after
    return model


def _blocks(model: Any) -> list[Block]:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a model, got {type(model).__name__}")
    return [module for module in model.modules() if isinstance(module, Block)]


def _checked(model: Any) -> Any:
    from flashmix.hf.interface import transformers

    if not isinstance(model, transformers().PreTrainedModel):
        raise ArgumentError(
            f"model must be a model of flashmix with blocks, or of transformers, got "
            f"{type(model).__name__}"
        )
    return model


def _mixer(index: int, blocks: list[Block]) -> Mixer:
    """The mixer of a block that nothing is wrapped around."""
    mixer = blocks[index].mixer
    if not isinstance(mixer, Mixer):
        raise ArgumentError(
            f"the mixer of layer {index} is wrapped in a {type(mixer).__name__}; look at the "
            "mixers, and set them, before that"
        )
    return mixer


def _heads(layer: int, blocks: list[Block]) -> int | None:
    """Heads of the layer's mixer, or else of the first that has heads."""
    found = [getattr(block.mixer, "num_heads", None) for block in (blocks[layer], *blocks)]
    return next((heads for heads in found if heads is not None), None)

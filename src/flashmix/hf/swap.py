"""The swap: other mixers in the attention layers of a Hugging Face encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from flashmix.errors import ArgumentError, ImplementationError, ModelError
from flashmix.hf.attention import check_projections, mixer_of, takes_relative_positions
from flashmix.hf.guard import refuse_other_tokens
from flashmix.hf.interface import SWAPPED, transformers
from flashmix.hf.relative import freeze_unread_positions
from flashmix.hf.saving import prepare, record_layer, record_model
from flashmix.hf.structure import PROBE, Layer, find_layers
from flashmix.hf.trial import try_attention
from flashmix.hf.unpad import check_packed, set_unpad, try_unpadding, unpadding_of
from flashmix.mixers import Mixer, MixerSpec, parse_mixer, parse_pattern
from flashmix.ops import _checks

Model = TypeVar("Model", bound=nn.Module)


class Tokens(nn.Module):
    """Stands where a projection was, and passes the tokens on."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``, contiguous as a projection's output is."""
        return x.contiguous()


def swap(
    model: Model,
    mixers: str | Mapping[int, str],
    example: Mapping[str, Any] | None = None,
    *,
    unpad: bool | None = None,
) -> Model:
    """Give a Hugging Face encoder other mixers, in place, and return it.

        >>> model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
        >>> flashmix.swap(model, "fnet*10,attention*2")
        >>> flashmix.swap(model, {0: "spectral", 1: "local(window=64)"})  # the others stay
        >>> print(flashmix.swap_report(model))

    Embeddings and positions, the output projection, residuals and norms stay as they are. Mixers
    that read q, k and v keep those pretrained projections ("attention", "local", "topk"), or v
    alone ("fourier"); the others drop them and mix the tokens. Every mixer honours
    ``attention_mask``. Of the regularisation, dropout of attention weights applies to "attention".

    Before anything is dropped, the model is called with a tiny input, once with its own attention
    and once with "attention" swapped in, and is refused where its outputs differ.

    ``model.config`` records the swap, so that ``save_pretrained`` and
    :func:`flashmix.from_pretrained` give the same model back.

    Args:
        model: an encoder of transformers, with or without a head.
        mixers: a mixer, a pattern over layers, or the mixers of some layers by number.
        example: inputs of the model by name, to try it with instead of the tiny input.
        unpad: remove padding once before the first layer and put it back after the last, so that
            projections, norms and MLPs skip it too; outputs at padding are zeros then. Tried like
            the swap itself. On a GPU the host waits once a call for the lengths; where it cannot,
            in a graph that is compiled, traced or captured, and where tokens are sharded across
            ranks, padding stays. None leaves it as an earlier swap set it, or else off.

    Raises:
        ModelError: a module of the model could not be understood; it is named. Or the model does
            not give its own outputs with "attention" swapped in, or without padding.
        ArgumentError: ``mixers`` does not fit, or needs projections that an earlier swap dropped.
        MissingDependencyError: transformers is not installed.
    """
    package = transformers()
    if not isinstance(model, package.PreTrainedModel):
        raise ArgumentError(
            f"swap: model must be a model of transformers, got {type(model).__name__}"
        )
    if unpad is not None:
        _checks.check_flag("swap", "unpad", unpad)
    layers = find_layers(model)
    unswapped = [index for index, layer in enumerate(layers) if not is_swapped([layer])]
    specs = {**dict.fromkeys(unswapped, MixerSpec("attention")), **_specs(mixers, len(layers))}
    if not any(is_swapped([layer]) for layer in layers):
        _try(model, layers, specs, example)
    built = {index: _build(layers[index], spec) for index, spec in specs.items()}
    before = unpadding_of(model, layers)
    unpads = before is not None and before.on
    if unpad or (unpads and unpad is None):
        check_packed({str(specs[index]): mixer for index, mixer in built.items()})
    if unpad and not unpads:
        install = partial(_install_attention, layers=[layers[index] for index in unswapped])
        try_unpadding(model, layers, install, example)
    prepare()
    for index, mixer in built.items():
        dropped = _install(model, layers[index], mixer)
        record_layer(layers[index].module, str(specs[index]), dropped)
    freeze_unread_positions(model)
    if unpad is not None:
        set_unpad(model, layers, unpad)
    record_model(model)
    return model


def is_swapped(layers: Sequence[Layer]) -> bool:
    """Whether the layers mix with mixers; a config may say so of a model that was loaded plain."""
    return all(mixer_of(layer.module) is not None for layer in layers)


def _specs(mixers: str | Mapping[int, str], depth: int) -> dict[int, MixerSpec]:
    """The mixers that are asked for, by layer."""
    if not isinstance(mixers, Mapping):
        return dict(enumerate(parse_pattern(mixers, depth)))
    for index in mixers:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < depth:
            raise ArgumentError(f"swap: layers are numbered 0 to {depth - 1}, got {index!r}")
    return {index: parse_mixer(text) for index, text in mixers.items()}


def _build(layer: Layer, spec: MixerSpec) -> Mixer:
    """The mixer of a layer, without projections of its own, where the layer's weights are."""
    mixer = spec.build(layer.dim, num_heads=layer.num_heads).drop_projections()
    check_projections("swap", spec, mixer)
    if any(getattr(part, "causal", False) for part in mixer.modules()):
        raise ArgumentError(f"swap: {spec} is causal; flashmix swaps the mixing of encoders")
    needless = layer.absolute and "k" not in mixer.reads
    if layer.relative and not needless and not takes_relative_positions(mixer):
        raise ModelError(
            f"swap: {layer.path} adds relative positions to its scores, which {spec} cannot take; "
            "attention and local can"
        )
    if hasattr(layer.module, "mixer") and not isinstance(layer.module.mixer, Mixer):
        raise ArgumentError(
            f"swap: the mixer of {layer.path} is wrapped in a {type(layer.module.mixer).__name__}, "
            "which a swap would remove; swap first, then wrap"
        )
    gone = [part for part in mixer.reads if layer.projections[part] is None]
    if gone:
        raise ArgumentError(
            f"swap: {spec} needs the projections of {', '.join(gone)}, which {layer.path} lost in "
            "an earlier swap; start from the original model"
        )
    return mixer.to(layer.weight.device, layer.weight.dtype).train(layer.module.training)


def _try(
    model: nn.Module,
    layers: list[Layer],
    specs: Mapping[int, MixerSpec],
    example: Mapping[str, Any] | None,
) -> None:
    """Raise ModelError unless attention, swapped into all layers, gives the model's own outputs."""

    def drops() -> bool:
        return any(_build(layers[index], spec).reads != "qkv" for index, spec in specs.items())

    modules = {layer.path: layer.module for layer in layers}
    try_attention(model, modules, partial(_install_attention, layers=layers), drops, example)


def _install_attention(model: Any, layers: Sequence[Layer]) -> None:
    """Put "attention" into the layers, for a trial."""
    for layer in layers:
        _install(model, layer, _build(layer, MixerSpec("attention")))
    model.config._attn_implementation = SWAPPED


def _install(model: nn.Module, layer: Layer, mixer: Mixer) -> int:
    """Put ``mixer`` into its layer; returns the number of parameters that it made needless."""
    dropped = 0
    if model.get_submodule(layer.path) is not layer.module:
        model.set_submodule(layer.path, layer.module)
    for part, name in layer.projections.items():
        if name is not None and part not in mixer.reads:
            dropped += sum(p.numel() for p in layer.module.get_submodule(name).parameters())
            setattr(layer.module, name, Tokens())
    if not hasattr(layer.module, "mixer"):
        layer.module.register_forward_pre_hook(_refuse_other_attention)
        refuse_other_tokens(layer.module)
    layer.module.mixer = mixer
    # Models initialise a layer by the names of its projections, which may be gone; the mixer's
    # weights were made with it.
    setattr(layer.module, "_is_hf_initialized", True)  # noqa: B010
    return dropped


def _refuse_other_attention(module: nn.Module, _: Any) -> None:
    """Without this, a later ``set_attn_implementation`` would attend where a mixer should mix."""
    config: Any = module.config
    if config._attn_implementation not in (SWAPPED, PROBE):
        raise ImplementationError(
            f"this model was swapped, so its attn_implementation must stay {SWAPPED!r}; it was set "
            f"to {config._attn_implementation!r}. For another attention, say so in the swap: "
            "flashmix.swap(model, 'attention(impl=naive)')"
        )

"""The swap: other mixers in the attention layers of a Hugging Face model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from flashmix.errors import ArgumentError, ImplementationError, ModelError
from flashmix.hf.adapters import freeze_unread_positions
from flashmix.hf.attention import (
    check_projections,
    is_full,
    mixer_of,
    own_attention,
    takes_relative_positions,
)
from flashmix.hf.finding import check_order, find_layers, has_decoder
from flashmix.hf.guard import refuse_other_tokens
from flashmix.hf.interface import SWAPPED, transformers
from flashmix.hf.masks import CAUSAL, Reach
from flashmix.hf.probe import PROBE
from flashmix.hf.projections import replace, stand_ins
from flashmix.hf.saving import prepare, record_layer, record_model
from flashmix.hf.structure import Layer, Structure
from flashmix.hf.trial import try_attention
from flashmix.hf.unpad import check_packed, set_unpad, try_unpadding, unpadding_of
from flashmix.hf.unread import freeze_unread, parameters_read
from flashmix.mixers import (
    FourierAttention,
    Hybrid,
    Mixer,
    MixerSpec,
    parse_mixer,
    parse_pattern,
)
from flashmix.ops import _checks

Model = TypeVar("Model", bound=nn.Module)


CACHES = ("past_key_values", "past_key_value", "layer_past")
"""What attention modules call their cache."""


def swap(
    model: Model,
    mixers: str | Mapping[int, str],
    example: Mapping[str, Any] | None = None,
    *,
    part: str | None = None,
    unpad: bool | None = None,
    allow_unordered: bool = False,
) -> Model:
    """Give a Hugging Face model other mixers, in place, and return it.

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
        model: a model of transformers, with or without a head. In a decoder, whose tokens see
            none that are later, mixers must be causal; "attention" is so there by itself.
        mixers: a mixer, a pattern over layers, or the mixers of some layers by number.
        example: inputs of the model by name, to try it with instead of the tiny input.
        part: the path of the submodel to swap, "encoder" of an encoder-decoder or "vision_model"
            say; the rest, a decoder's cross-attention too, stays as it is.
        unpad: remove padding once before the first layer and put it back after the last, so that
            projections, norms and MLPs skip it too; outputs at padding are zeros then. Tried like
            the swap itself. On a GPU the host waits once a call for the lengths; where it cannot,
            in a graph that is compiled, traced or captured, and where tokens are sharded across
            ranks, padding stays. None leaves it as an earlier swap set it, or else off.
        allow_unordered: give every layer "fourier" though the model's only positions are rotations
            of q and k, which "fourier" does not read; such a model cannot tell left from right.

    Raises:
        ModelError: a module of the model could not be understood; it is named. Or the model does
            not give its own outputs with "attention" swapped in, or without padding; or could not
            tell left from right.
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
    inner = model if part is None else _submodel(model, part)
    _swap(inner, mixers, example, None, unpad, allow_unordered)
    return model


def _submodel(model: Any, part: str) -> nn.Module:
    """The submodel of ``model``, or of the one within its head, at a path."""
    for path in (part, f"{model.base_model_prefix}.{part}"):
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, transformers().PreTrainedModel):
            return found
    names = [
        path
        for path, module in model.named_modules()
        if path and isinstance(module, transformers().PreTrainedModel)
    ]
    raise ArgumentError(
        f"swap: {type(model).__name__} has no submodel {part!r}, but {', '.join(names) or 'none'}"
    )


def _own_config(model: Any) -> None:
    """Give an encoder a config of its own, where it shares that of its encoder-decoder."""
    shared = model.config
    if getattr(shared, "is_encoder_decoder", False) and not has_decoder(model):
        own = copy.deepcopy(shared)
        for module in model.modules():
            if getattr(module, "config", None) is shared:
                module.config = own


def repeat_swap(
    model: nn.Module, mixers: Sequence[str], known: list[Structure] | None, unpad: bool
) -> None:
    """The swap that a saved model records, in a new one; ``known`` is what its layers are like."""
    _swap(model, dict(enumerate(mixers)), None, known, unpad, True)


def _swap(
    model: Any,
    mixers: str | Mapping[int, str],
    example: Mapping[str, Any] | None,
    known: list[Structure] | None,
    unpad: bool | None,
    allow_unordered: bool,
) -> None:
    layers = find_layers(model, example, known)
    unswapped = [index for index, layer in enumerate(layers) if not is_swapped([layer])]
    specs = {**dict.fromkeys(unswapped, MixerSpec("attention")), **_specs(mixers, len(layers))}
    with torch.device("meta"):
        made = {index: _make(layers[index], spec) for index, spec in specs.items()}
    if not allow_unordered:
        final = [made.get(index, mixer_of(layer.module)) for index, layer in enumerate(layers)]
        if all(mixer is not None and _is_unordered(mixer) for mixer in final):
            check_order(model, layers, example)
    if not any(is_swapped([layer]) for layer in layers):
        drops = any(mixer.reads != "qkv" for mixer in made.values())
        _try(model, layers, drops, example)
    built = {index: _build(layers[index], spec) for index, spec in specs.items()}
    before = unpadding_of(model, layers)
    unpads = before is not None and before.on
    if unpad or (unpads and unpad is None):
        check_packed({str(specs[index]): mixer for index, mixer in built.items()})
    if unpad and not unpads:
        install = partial(_install_attention, layers=[layers[index] for index in unswapped])
        try_unpadding(model, layers, install, example)
    drops = any("q" not in mixer.reads for mixer in made.values())
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    read_before = parameters_read(model, example) if drops and not on_meta else set()
    prepare()
    _own_config(model)
    for index, mixer in built.items():
        layer = layers[index]
        dropped, gone = _install(model, layer, mixer)
        record_layer(layer.module, str(specs[index]), dropped, layer.structure, gone)
    freeze_unread_positions(model)
    model.config._attn_implementation = SWAPPED
    freeze_unread(model, read_before, example)
    if unpad is not None:
        set_unpad(model, layers, unpad)
    record_model(model)
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # mixers keep none, and models make one by default


def _is_unordered(mixer: Mixer) -> bool:
    """Whether a mixer gives mirrored tokens mirrored outputs, without positions elsewhere."""
    parts = mixer.mixers if isinstance(mixer, Hybrid) else [mixer]
    return all(isinstance(part, FourierAttention) for part in parts)


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
    mixer = _make(layer, spec)
    return mixer.to(layer.weight.device, layer.weight.dtype).train(layer.module.training)


def _make(layer: Layer, spec: MixerSpec) -> Mixer:
    """The mixer of a layer, if it fits."""
    structure, own = layer.structure, spec.name == "attention"
    try:
        wanted = _within_reach(spec, structure.reach) if own else spec
        mixer = wanted.build(structure.dim, num_heads=structure.num_heads).drop_projections()
    except ArgumentError as error:
        raise ArgumentError(f"swap: {layer.path}: {error}") from None
    check_projections("swap", spec, mixer)
    _check_fits(layer, spec, mixer)
    gone = [part for part in mixer.reads if layer.projections[part] is None]
    if gone and not (mixer.reads == "v" and structure.unread is None):
        raise ArgumentError(
            f"swap: {spec} needs the projections of {', '.join(gone)}, which {layer.path} lost in "
            "an earlier swap; start from the original model"
        )
    return own_attention(mixer) if own else mixer


def _within_reach(spec: MixerSpec, reach: Reach) -> MixerSpec:
    """What "attention" means in a layer: all tokens, those before, or the layer's own window."""
    before, after = reach
    if before is None or after is None:
        causal = {"causal": True} if reach == CAUSAL else {}
        return MixerSpec("attention", {**spec.options, **causal})
    options = {name: value for name, value in spec.options.items() if name != "causal"}
    if options.get("impl") == "naive":
        options["impl"] = "reference"
    return MixerSpec("local", {**options, "window": (before, after), "causal": after == 0})


def _check_fits(layer: Layer, spec: MixerSpec, mixer: Mixer) -> None:
    """Raise unless the mixer can stand in the layer."""
    structure, where = layer.structure, f"{layer.owner} cannot be swapped: {layer.path}"
    within = [part for part in mixer.modules() if isinstance(part, Mixer)]
    leaves = [part for part in within if not isinstance(part, Hybrid)]
    later = [part for part in leaves if not getattr(part, "causal", False)]
    if structure.causal and later:
        raise ModelError(
            f"{where} is causal, and {spec} sees later tokens; causal mixers are "
            "attention, local(causal=True), topk(causal=True) and spectral(causal=True)"
        )
    if not structure.causal and len(later) < len(leaves):
        raise ArgumentError(
            f"swap: {spec} is causal, and {layer.path} is not: its tokens see later ones"
        )
    if structure.relative and "k" in mixer.reads and not takes_relative_positions(mixer):
        raise ModelError(
            f"{where} adds relative positions to its scores, which {spec} cannot take; attention "
            "and local can, and fnet and spectral need none"
        )
    if structure.biased and not is_full(mixer):
        raise ModelError(
            f"{where} has a mask that adds to its scores (relative positions, or which windows see "
            f"each other), which {spec} cannot take; attention can"
        )
    if "q" not in mixer.reads and structure.unread is None:
        raise ModelError(
            f"{where} cannot do without its q and k, which {spec} does not read: its code needs "
            "them, or they are made of other tokens than v; attention, local and topk can stand "
            "there"
        )
    if hasattr(layer.module, "mixer") and not isinstance(layer.module.mixer, Mixer):
        raise ArgumentError(
            f"swap: the mixer of {layer.path} is wrapped in a {type(layer.module.mixer).__name__}, "
            "which a swap would remove; swap first, then wrap"
        )


def _try(
    model: nn.Module, layers: list[Layer], drops: bool, example: Mapping[str, Any] | None
) -> None:
    """Raise ModelError unless attention, swapped into all layers, gives the model's own outputs."""
    modules = {layer.path: layer.module for layer in layers}
    try_attention(model, modules, partial(_install_attention, layers=layers), drops, example)


def _install_attention(model: Any, layers: Sequence[Layer]) -> None:
    """Put "attention" into the layers, for a trial."""
    for layer in layers:
        _install(model, layer, _build(layer, MixerSpec("attention")))
    model.config._attn_implementation = SWAPPED


def _install(model: nn.Module, layer: Layer, mixer: Mixer) -> tuple[int, str]:
    """Put ``mixer`` into its layer.

    Returns the number of parameters that it made needless, and which of q, k and v are gone.
    """
    structure, module = layer.structure, layer.module
    if model.get_submodule(layer.path) is not module:
        model.set_submodule(layer.path, module)
    gone = [part for part in "qkv" if structure.projections[part] is None]
    before = sum(p.numel() for p in module.parameters())
    before -= sum(p.numel() for n, p in module.named_parameters() if n.startswith("mixer."))
    if "q" not in mixer.reads:
        keeps_v = bool(mixer.reads) or not structure.tokens
        replace(module, stand_ins(module, structure, keep_v=keeps_v))
        gone = ["q", "k"] if keeps_v and "v" not in gone else ["q", "k", "v"]
    after = sum(p.numel() for n, p in module.named_parameters() if not n.startswith("mixer."))
    if not hasattr(module, "mixer"):
        module.register_forward_pre_hook(_refuse_other_attention, with_kwargs=True)
        refuse_other_tokens(module)
    module.mixer = mixer
    # Models initialise a layer by the names of its projections, which may be gone; the mixer's
    # weights were made with it.
    setattr(module, "_is_hf_initialized", True)  # noqa: B010
    return before - after, "".join(gone)


def _refuse_other_attention(module: nn.Module, _: Any, options: dict[str, Any]) -> None:
    """Without this, a later ``set_attn_implementation`` would attend where a mixer should mix."""
    config: Any = module.config
    if config._attn_implementation not in (SWAPPED, PROBE):
        raise ImplementationError(
            f"this model was swapped, so its attn_implementation must stay {SWAPPED!r}; it was set "
            f"to {config._attn_implementation!r}. For another attention, say so in the swap: "
            "flashmix.swap(model, 'attention(impl=naive)')"
        )
    if any(options.get(name) is not None for name in CACHES):
        raise ModelError(
            f"{type(module).__name__}: mixers keep no cache of keys and values; pass "
            "use_cache=False, to generate() too, which then computes all tokens for each new one"
        )

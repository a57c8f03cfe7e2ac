"""What transformers calls in place of its attention, and the mask that it passes there.

Shapes: B batch, H heads, N tokens, dh width of a head, D = H * dh.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from flashmix.errors import ArgumentError, ModelError, missing_extra
from flashmix.hf.attention import (
    check_projections,
    drops_weights,
    full_attention,
    is_full,
    mixer_of,
    relative_attention,
)
from flashmix.hf.guard import NAMES, guard_models
from flashmix.hf.masks import adds_to_scores, layer_mask, padding_mask, tokens_mask
from flashmix.hf.real_tokens import RealTokens
from flashmix.mixers import Attention, Mixer, parse_mixer
from flashmix.mixers._base import QKVMixer
from flashmix.mixers._heads import AttentionHeads, Heads
from flashmix.ops._dense import repeat_heads
from flashmix.ops._packed import Lengths

SWAPPED = "mixers"
"""The ``attn_implementation`` of swapped models: each layer mixes with its own ``mixer``.

Not "flashmix": transformers takes any name with "flash" in it for FlashAttention.
"""

TAKEN = {
    *("is_causal", "position_bias", "output_attentions"),
    *("num_items_in_batch", "output_hidden_states", "output_router_logits", "return_dict"),
    *("use_cache", "position_ids", "cache_position", "position_embeddings", "layer_idx"),
    *("target_dtype", "deterministic", "max_length_q", "max_length_k"),
}
"""Options of an attention that a mixer honours, or that say nothing of what attends to what."""

_registered: dict[str, str] = {}
"""Mixers by the names that :func:`register_attention` gave them."""


def transformers() -> Any:
    """The transformers package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", "hf", "flashmix.hf") from None
    return transformers


def register_attention(mixer: str = "local", name: str | None = None) -> str:
    """Register a mixer of q, k and v with transformers, and return its name there.

        >>> name = flashmix.register_attention("local(window=64)")  # "mixer_local(window=64)"
        >>> model = AutoModel.from_pretrained(path, attn_implementation=name)

    Every layer of such a model mixes alike and all weights stay; nothing is written to its config.
    :func:`flashmix.swap` does more: a pattern over layers, mixers with weights of their own.
    A model whose attention does not look at ``attn_implementation`` raises ModelError when it is
    built with the name or given it.

    Args:
        mixer: "attention", "local", "topk", or these with options.
        name: the name to register; "mixer_" and the mixer with its options when None.

    Raises:
        ArgumentError: the mixer does not mix q, k and v, or has parameters of its own; or another
            mixer has the name, and models that run may use it.
    """
    spec = parse_mixer(mixer)
    probe = spec.build(2, num_heads=1).drop_projections()
    check_projections("register_attention", spec, probe)
    if probe.reads != "qkv" or next(probe.parameters(), None) is not None:
        raise ArgumentError(
            f"register_attention: {mixer!r} does not mix q, k and v alone; "
            "use flashmix.swap, which gives each layer a mixer of its own"
        )

    @functools.cache
    def build(dim: int, num_heads: int) -> Mixer:
        return spec.build(dim, num_heads=num_heads).drop_projections()

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, None]:
        one = build(query.shape[1] * query.shape[3], query.shape[1])
        return _attend(one, one, module, query, key, value, *args, **options)

    name = name or f"mixer_{spec}"
    if "flash" in name:
        raise ArgumentError(
            f"register_attention: name must not contain 'flash', which transformers takes for "
            f"FlashAttention, got {name!r}"
        )
    if name == SWAPPED or _registered.setdefault(name, str(spec)) != str(spec):
        raise ArgumentError(
            f"register_attention: {name!r} is {_registered.get(name, 'taken by the swap')} already "
            f"and models may run with it; give {str(spec)!r} another name"
        )
    _register(name, attend, padding_mask)
    return name


def register_swapped() -> None:
    """Register the implementation that swapped models use."""
    _register(SWAPPED, _attend_swapped, layer_mask)


def _register(name: str, attend: Any, mask: Any) -> None:
    transformers()
    from transformers import AttentionInterface, AttentionMaskInterface

    NAMES.add(name)
    guard_models()
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)


def _attend_swapped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, None]:
    mixer = mixer_of(module)
    if mixer is None:
        raise ModelError(
            f"{type(module).__name__}: the config is that of a swapped model, but this layer was "
            "not swapped; load swapped models with flashmix.from_pretrained"
        )
    if "q" not in mixer.reads:
        query = key = value = _filled(value, mixer.dim)
    # What the layer's window and order are was found before the swap, and is the mixer's.
    options["sliding_window"] = None
    options["is_causal"] = False
    call: Any = module.mixer
    return _attend(call, mixer, module, query, key, value, *args, **options)


def _filled(value: Tensor, dim: int) -> Tensor:
    """Grouped heads of v repeated until they are ``dim`` wide."""
    group = dim // (value.shape[1] * value.shape[3])
    return value if group <= 1 else value.repeat_interleave(group, 1)


def _attend(
    call: nn.Module,
    mixer: Mixer,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | RealTokens | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Mix query, key and value [B, H, N, dh]; returns [B, N, H, dh] and no weights.

    Those of real tokens alone are [1, H, T, dh], and ``attention_mask`` says whose they are.
    ``call`` is the mixer, or what is wrapped around it.
    """
    where = type(module).__name__
    if "cross" in where.lower() or getattr(module, "is_cross_attention", False):
        raise ModelError(f"{where}: this is cross-attention, and mixers mix the tokens themselves")
    if key.shape != value.shape or (
        query.shape != key.shape
        and (query.shape[::2] != key.shape[::2] or query.shape[1] % key.shape[1])
    ):
        raise ModelError(
            f"{where}: mixers need query, key and value of the same tokens, got "
            f"{list(query.shape)}, {list(key.shape)}, {list(value.shape)}; cross-attention is not "
            "supported, and neither are caches: pass use_cache=False"
        )
    causal = options.get("is_causal")
    if getattr(module, "is_causal", False) if causal is None else causal:
        raise ModelError(f"{where}: flashmix mixes encoders; this layer is causal")
    if options.get("output_attentions"):
        raise ModelError(f"{where}: mixers hold no attention weights to return")
    for name, option in options.items():
        if name not in TAKEN and option is not None and option is not False:
            raise ModelError(
                f"{where} gives its attention {name}, which mixers do not take; use one of "
                "transformers' own attn_implementation for this model, such as 'sdpa' or 'eager'"
            )
    if not isinstance(mixer, QKVMixer):
        key, value = repeat_heads(query, key, value)
    heads, width = query.shape[1], query.shape[3]
    bias = options.get("position_bias") if "k" in mixer.reads else None
    if bias is None and adds_to_scores(attention_mask) and type(mixer) is Attention:
        bias, attention_mask = attention_mask, None
    lengths: Lengths = {}
    if isinstance(attention_mask, RealTokens):
        lengths, mask = attention_mask.lengths(query.device), None
    else:
        mask = tokens_mask(where, attention_mask)
    if scaling is not None and scaling != width**-0.5:
        query = query * (scaling * width**0.5)
    if bias is not None:
        mixer.check_all_tokens("relative positions")
        if lengths:
            raise ModelError(
                f"{where} adds relative positions to its scores, which needs padding; swap with "
                "unpad=False"
            )
        y = relative_attention(mixer, query, key, value, mask, bias, dropout)
        return y.unflatten(-1, (heads, width)), None
    attend: Any = None
    if dropout and drops_weights(mixer):
        attend = functools.partial(relative_attention, bias=None, dropout=dropout)
    elif is_full(mixer) and (dropout or mask is not None):
        attend = functools.partial(full_attention, dropout=dropout)
    if lengths:
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if attend is not None and mixer.sharding is None:
        key, value = repeat_heads(query, key, value)
        y = call(AttentionHeads(query, key, value, attend), mask, **lengths)
    else:
        y = call(Heads(query, key, value), mask, **lengths)
    y = y.unflatten(-1, (heads, width))
    return (y[None] if lengths else y), None

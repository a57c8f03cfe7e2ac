"""What transformers calls in place of its attention, and the mask that it passes there.

Shapes: B batch, H heads, N tokens, dh width of a head, D = H * dh.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError, ModelError, missing_extra
from flashmix.hf.attention import dropout_attention, mixer_of, relative_attention
from flashmix.mixers import Attention, Mixer, parse_mixer
from flashmix.mixers._base import Heads

SWAPPED = "mixers"
"""The ``attn_implementation`` of swapped models: each layer mixes with its own ``mixer``.

Not "flashmix": transformers takes any name with "flash" in it for FlashAttention.
"""


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

        >>> name = flashmix.register_attention("local(window=64)")  # "mixer_local"
        >>> model = AutoModel.from_pretrained(path, attn_implementation=name)

    Every layer of such a model mixes alike and all weights stay; nothing is written to its config.
    :func:`flashmix.swap` does more: a pattern over layers, mixers with weights of their own.

    Args:
        mixer: "attention", "local", "topk", or these with options.
        name: the name to register; "mixer_" and the mixer's name when None.

    Raises:
        ArgumentError: the mixer does not mix q, k and v, or has parameters of its own.
    """
    spec = parse_mixer(mixer)
    probe = spec.build(2, num_heads=1).drop_projections()
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

    name = name or f"mixer_{spec.name}"
    if "flash" in name:
        raise ArgumentError(
            f"register_attention: name must not contain 'flash', which transformers takes for "
            f"FlashAttention, got {name!r}"
        )
    _register(name, attend)
    return name


def register_swapped() -> None:
    """Register the implementation that swapped models use."""
    _register(SWAPPED, _attend_swapped)


def _register(name: str, attend: Any) -> None:
    transformers()
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, padding_mask)


def padding_mask(
    attention_mask: Tensor | None = None, mask_function: Any = None, **_: Any
) -> Tensor | None:
    """The mask that a model's layers get: bool [B, N], or None where nothing is padded.

    Raises:
        ModelError: the model wants another pattern than padding, for example a causal one.
    """
    from transformers.masking_utils import bidirectional_mask_function

    if mask_function is not bidirectional_mask_function:
        raise ModelError(
            "flashmix mixes encoders, whose tokens all see each other; this model asks for "
            f"another mask ({getattr(mask_function, '__qualname__', mask_function)})"
        )
    if attention_mask is None:
        return None
    mask = attention_mask.bool()
    # Looking at the values breaks a compiled graph; there the mask is passed on as it is.
    return None if not torch.compiler.is_compiling() and bool(mask.all()) else mask


def _attend_swapped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, None]:
    mixer = mixer_of(module)
    if mixer is None:
        raise ModelError(
            f"{type(module).__name__}: the config is that of a swapped model, but this layer was "
            "not swapped; load swapped models with flashmix.from_pretrained"
        )
    call: Any = module.mixer
    return _attend(call, mixer, module, query, key, value, *args, **options)


def _attend(
    call: nn.Module,
    mixer: Mixer,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Mix query, key and value [B, H, N, dh]; returns [B, N, H, dh] and no weights.

    ``call`` is the mixer, or what is wrapped around it.
    """
    where = type(module).__name__
    if query.shape != key.shape or query.shape != value.shape:
        raise ModelError(
            f"{where}: flashmix needs query, key and value alike in shape, got "
            f"{list(query.shape)}, {list(key.shape)}, {list(value.shape)}; "
            "cross-attention, caches and grouped heads are not supported"
        )
    if options.get("is_causal") or getattr(module, "is_causal", False):
        raise ModelError(f"{where}: flashmix mixes encoders; this layer is causal")
    if options.get("output_attentions"):
        raise ModelError(f"{where}: mixers hold no attention weights to return")
    heads, width = query.shape[1], query.shape[3]
    mask = _tokens_mask(where, attention_mask)
    if scaling is not None and scaling != width**-0.5:
        query = query * (scaling * width**0.5)
    bias = options.get("position_bias")
    if bias is not None:
        y = relative_attention(mixer, query, key, value, mask, bias, dropout)
    elif dropout and isinstance(mixer, Attention):
        y = dropout_attention(mixer, query, key, value, mask, dropout)
    else:
        y = call(Heads(query, key, value), mask)
    return y.unflatten(-1, (heads, width)), None


def _tokens_mask(where: str, mask: Tensor | None) -> Tensor | None:
    """``mask`` as bool [B, N]; [B, 1, 1, N], bool or added to scores, says no more than that."""
    if mask is None or (mask.dim() == 2 and mask.dtype == torch.bool):
        return mask
    if mask.dim() == 4 and mask.shape[1:3] == (1, 1):
        row = mask[:, 0, 0]
        return row if row.dtype == torch.bool else row >= 0
    raise ModelError(
        f"{where}: flashmix needs attention_mask [B, N] with 1 or True at real tokens; "
        f"the layer got {list(mask.shape)} {mask.dtype}, which may also hold what is added to "
        "scores, such as relative positions"
    )

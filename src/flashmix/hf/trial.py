"""Tries a model with a mixer's attention in place of its own, before a swap drops any weight.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError, FlashmixError, ModelError
from flashmix.hf.guard import may_take_other_tokens
from flashmix.hf.interface import register_swapped
from flashmix.hf.tiny import tiny_inputs
from flashmix.hf.untouched import random_state_kept, untouched

TOLERANCE = 1e-3
"""Relative error of an output; half types get that of some dozen roundings instead."""


def try_attention(
    model: Any,
    layers: Mapping[str, nn.Module],
    install: Callable[[Any], None],
    drops: bool,
    example: Mapping[str, Any] | None,
) -> None:
    """Raise ModelError where the model's outputs change with attention swapped in.

    The model is called twice with a tiny input, with its own attention and after ``install``, and
    is left as it was: weights, config, hooks, modes and random state. Models on the meta device
    are not tried.

    Args:
        model: a model of transformers.
        layers: the attention modules by path, which ``install`` changes and may put there.
        install: swaps "attention" into all layers of the model.
        drops: whether the swap drops weights, which a model that could not be tried is warned of.
        example: inputs to try instead of made ones.

    Raises:
        ModelError: an output differs, or the model raises with attention swapped in; or it could
            not be tried and has a layer that may be cross-attention.
        ArgumentError: the model raises on ``example`` before anything is swapped.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    name = type(model).__name__
    register_swapped()
    device = torch.device(model.device)
    with untouched(model, layers.values()), torch.autocast(device.type, enabled=False):
        for module in model.modules():
            module.training = False
        # A registered mixer, or one of the kernels' compilations, is nothing to compare with.
        model.config._attn_implementation = "eager"
        model.config.use_cache = False
        reason = "it is not known which inputs it takes"
        for inputs in tiny_inputs(model) if example is None else (example,):
            try:
                want = _outputs(model, inputs)
                break
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
        else:
            _untried(model, layers, drops, example is not None, reason)
            return
        with random_state_kept(model):
            install(model)
        fault = _fault(model, inputs, want)
    if fault:
        raise ModelError(
            f"{name} cannot be swapped: with a mixer's attention in place of its own {fault}. "
            "Nothing was changed; keep this model's own attention"
        )


def _untried(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    drops: bool,
    given: bool,
    reason: str,
) -> None:
    """Refuse or warn, as far as going on is a risk."""
    name = type(model).__name__
    if given:
        raise ArgumentError(f"swap: {name} does not run on example ({reason})")
    could = f"swap: {name} could not be tried before the swap ({reason})"
    for path, layer in layers.items():
        if "cross" in path.lower() and may_take_other_tokens(layer):
            raise ModelError(
                f"{could}, and {path} ({type(layer).__name__}) may be cross-attention, which "
                "mixers cannot take the place of; give swap example=, a dict of the model's inputs"
            )
    if drops:
        warnings.warn(
            f"{could}, which drops weights; give swap example=, a dict of the model's inputs, to "
            "have it tried",
            stacklevel=6,
        )


def _fault(
    model: Any,
    inputs: Mapping[str, Any],
    want: list[tuple[str, Tensor]],
    mask: Tensor | None = None,
) -> str | None:
    """What is wrong with the outputs of a model that should be ``want``.

    Those of tokens [B, N, ...] may differ at padding, by ``mask`` [B, N], or by that of the inputs.
    """
    try:
        got = _outputs(model, inputs)
    except FlashmixError as error:
        return f"it does not run ({error})"
    except Exception as error:
        return f"it does not run ({type(error).__name__}: {error})"
    mask = inputs.get("attention_mask") if mask is None else mask
    found = dict(got)
    for name, one in want:
        other = found.get(name)
        if other is None or other.shape != one.shape:
            shape = None if other is None else list(other.shape)
            return f"its {name} has another shape ({shape}, expected {list(one.shape)})"
        if isinstance(mask, Tensor) and mask.dim() == 2 and one.shape[:2] == mask.shape:
            one, other = one[mask.bool()], other[mask.bool()]
        tolerance = max(TOLERANCE, 64 * torch.finfo(one.dtype).eps)
        finite = one.isfinite()
        one, other = one[finite].double(), other[finite].double()
        distance = float((other - one).norm() / one.norm().clamp(min=1e-30))
        if not distance <= tolerance:
            return f"its {name} differs (by {distance:.1g} of its norm)"
    return None


def _outputs(model: Any, inputs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """All outputs of floating point, by name; each call draws the same random numbers."""
    with random_state_kept(model), torch.no_grad():
        found = list(tensors_of(model(**inputs)))
    return [(name or "output", tensor) for name, tensor in found if tensor.is_floating_point()]


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a model's output, by name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors_of(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from tensors_of(inner, f"{name}[{index}]")

"""Where a swapped model's padding is removed, and the trial that its outputs stay what they were.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError, ModelError
from flashmix.hf.interface import register_swapped
from flashmix.hf.real_tokens import UNPADDING, RealTokens, Unpadding, find_real_tokens
from flashmix.hf.structure import Layer
from flashmix.hf.tiny import tiny_inputs
from flashmix.hf.trial import _fault, _outputs
from flashmix.hf.untouched import untouched
from flashmix.mixers import Mixer


def unpadding_of(model: nn.Module, layers: Sequence[Layer]) -> Unpadding | None:
    """What an earlier swap set to remove the padding of these layers."""
    with suppress(ModelError):
        found: Unpadding | None = getattr(_stack(model, layers)[0], UNPADDING, None)
        return found
    return None


def set_unpad(model: nn.Module, layers: Sequence[Layer], on: bool) -> None:
    """Let the layers get real tokens alone from now on, or padding again."""
    unpadding = unpadding_of(model, layers)
    if unpadding is not None:
        unpadding.on = on
    elif on:
        Unpadding([layer.module for layer in layers]).install(*_stack(model, layers))


def check_packed(mixers: Mapping[str, Mixer]) -> None:
    """Raise ArgumentError where a mixer, by its text, takes no packed tokens."""
    for text, mixer in mixers.items():
        if "cu_seqlens" not in inspect.signature(mixer.forward).parameters:
            raise ArgumentError(
                f"swap: {text} takes no packed tokens (its forward has no cu_seqlens), which "
                "unpad=True gives it; swap with unpad=False"
            )


def try_unpadding(
    model: Any,
    layers: Sequence[Layer],
    install: Callable[[Any], None],
    example: Mapping[str, Any] | None,
) -> None:
    """Raise ModelError unless the model's outputs stay the same without padding in its layers.

    The model is called with tiny inputs, padded at the end of a sequence and within it, with and
    without padding in its layers, and is left as it was. Outputs of tokens are compared at real
    ones, others as they are: a head that reads padding is refused. On the meta device its structure
    alone is checked.

    Args:
        model: a model of transformers.
        layers: its attention layers.
        install: swaps "attention" into the layers, where they are not swapped yet.
        example: inputs to try instead of made ones.

    Raises:
        ModelError: as above; or nothing could be unpadded, or the model could not be tried.
        ArgumentError: the model raises on ``example``.
    """
    _check_structure(model, layers)
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    register_swapped()
    modules = [layer.module for layer in layers]
    device = torch.device(model.device)
    with untouched(model, modules), torch.autocast(device.type, enabled=False):
        for module in model.modules():
            module.training = False
        install(model)
        found: list[RealTokens | None] = []
        _stack(model, layers)[0][0].register_forward_pre_hook(
            lambda _, args, options: found.append(find_real_tokens((*args, *options.values()))),
            with_kwargs=True,
        )
        inputs, want = _padded_outputs(model, example)
        real = next((one for one in found if one and one.total < one.mask.numel()), None)
        if real is None:
            raise _unfit(
                model,
                "no padding came to its layers; where it takes attention_mask [B, N], give swap "
                "example=, inputs with zeros in it",
            )
        if fault := _unpadded_fault(model, layers, inputs, want, real):
            raise _unfit(model, f"without padding {fault}")
        inputs = _with_gaps(inputs)
        try:
            want, real = _outputs(model, inputs), found[-1]
        except Exception:  # what the model never takes need not be right
            real = None
        fault = None if real is None else _unpadded_fault(model, layers, inputs, want, real)
    if fault:
        raise _unfit(model, f"without padding between real tokens {fault}")


def _unpadded_fault(
    model: Any, layers: Sequence[Layer], inputs: Any, want: Any, real: RealTokens
) -> str | None:
    """What is wrong with the outputs without padding, which should be ``want`` at real tokens."""
    set_unpad(model, layers, True)
    try:
        return _fault(model, inputs, want, real.mask)
    finally:
        set_unpad(model, layers, False)


def _with_gaps(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with padding between the real tokens of the last sequence.

    Positions that a layer counts by itself are those of the other tokens then.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return {**inputs}
    gaps = mask.clone()
    gaps[-1, 1::2] = 0
    return {**inputs, "attention_mask": gaps}


def _padded_outputs(model: Any, example: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """Inputs on which the model runs, with hidden states where it gives them; and its outputs."""
    reason = "it is not known which inputs it takes"
    for inputs in tiny_inputs(model) if example is None else (example,):
        for options in ({"output_hidden_states": True}, {}):
            try:
                return {**inputs, **options}, _outputs(model, {**inputs, **options})
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
    if example is not None:
        raise ArgumentError(f"swap: {type(model).__name__} does not run on example ({reason})")
    raise _unfit(
        model, f"it could not be tried ({reason}); give swap example=, a dict of its inputs"
    )


def _check_structure(model: Any, layers: Sequence[Layer]) -> None:
    """Raise ModelError for what a trial may not see."""
    from flashmix.parallel.shard import MIX_TOKENS

    for layer in layers:
        if layer.structure.relative or layer.structure.biased:
            raise _unfit(model, f"{layer.path} adds relative positions to its scores")
    stack, _ = _stack(model, layers)
    for path, module in stack.named_modules():
        if isinstance(module, MIX_TOKENS):
            raise _unfit(
                model, f"{path} ({type(module).__name__}) of its layers reaches across tokens"
            )
    for name, value in vars(model.config).items():
        if "layerdrop" in name and value:
            raise _unfit(
                model,
                f"its training leaves out layers, where padding is to be removed or put back "
                f"(config.{name} = {value}); set that to 0",
            )


def _stack(model: nn.Module, layers: Sequence[Layer]) -> tuple[nn.ModuleList, list[nn.Module]]:
    """The list that holds all layers, and the modules that hold the list, inner ones first."""
    parts = layers[0].path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:end])
        stack = model.get_submodule(path)
        if isinstance(stack, nn.ModuleList) and all(
            layer.path.startswith(f"{path}.") for layer in layers
        ):
            return stack, [model.get_submodule(".".join(parts[:i])) for i in range(end)[::-1]]
    raise _unfit(model, "no nn.ModuleList holds all its layers")


def _unfit(model: nn.Module, why: str) -> ModelError:
    return ModelError(
        f"swap: {type(model).__name__} cannot be unpadded: {why}. Nothing was changed; swap it "
        "with unpad=False"
    )

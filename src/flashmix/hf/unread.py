"""Weights outside of layers that only q and k read stop training once both are gone everywhere.

Such are learned positions of a rotation, or those that are added to scores. A gradient would never
reach them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from flashmix.hf.tiny import tiny_inputs
from flashmix.hf.tracing import leaves
from flashmix.hf.trial import tensors_of
from flashmix.hf.untouched import untouched

_FROZEN = "_flashmix_frozen"


def parameters_read(model: Any, example: Mapping[str, Any] | None) -> set[str]:
    """The names of the parameters that a model's outputs depend on; none where it does not run."""
    with untouched(model), torch.autocast(model.device.type, enabled=False), torch.enable_grad():
        for part in model.modules():
            part.training = False
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        model.config.use_cache = False
        for inputs in tiny_inputs(model) if example is None else (example,):
            try:
                outputs = [tensor for _, tensor in tensors_of(model(**inputs))]
            except Exception:
                continue
            reached = set().union(*map(leaves, outputs))
            return {name for name, p in model.named_parameters() if id(p) in reached}
    return set()


def freeze_unread(model: Any, read_before: set[str], example: Mapping[str, Any] | None) -> None:
    """Stop training what was read before a swap and is not any more."""
    if read_before and (now := parameters_read(model, example)):
        freeze(model, sorted(read_before - now))


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Stop training parameters, named as in ``model`` or as in the same model under a head."""
    own = dict(model.named_parameters())
    found = [
        path
        for path in own
        for name in names
        if f".{name}".endswith(f".{path}") or f".{path}".endswith(f".{name}")
    ]
    for path in found:
        own[path].requires_grad_(False)
    if found:
        setattr(model, _FROZEN, sorted({*frozen(model), *found}))


def frozen(model: nn.Module) -> list[str]:
    """The parameters that swaps of this model stopped training."""
    names: list[str] = getattr(model, _FROZEN, [])
    return names

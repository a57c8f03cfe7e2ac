"""The state of a training run as one safetensors file: tensors, and JSON in its header.

One file, replaced whole, so that weights, optimizer and bookkeeping are always of the same step.
Random numbers need no place in it: every step seeds them anew from the run's seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashmix._files import write_whole
from flashmix.errors import FlashmixError

STATE = "state"
MODEL, OPTIMIZER = "model.", "optimizer."


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write ``model``, ``optimizer`` and ``state`` (JSON) to ``path``."""
    tensors = {MODEL + name: value for name, value in weights(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{OPTIMIZER}{key}.{name}"] = value
    _write(path, tensors, {STATE: json.dumps(state)})


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore ``model`` and ``optimizer`` from ``path`` and return the state beside them.

    Raises:
        FlashmixError: the file holds no state, or that of another model.
    """
    tensors, header = _read(path)
    load_weights(
        model,
        {name.removeprefix(MODEL): t for name, t in tensors.items() if name.startswith(MODEL)},
        path,
    )
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        if name.startswith(OPTIMIZER):
            key, _, parameter = name.removeprefix(OPTIMIZER).partition(".")
            kept = optimizer.state[parameters[parameter]]
            # AdamW counts its steps on the CPU unless fused.
            where = parameters[parameter].device if key != "step" or _fused(optimizer) else "cpu"
            kept[key] = value.to(where)
    try:
        state: dict[str, Any] = json.loads(header[STATE])
    except (KeyError, json.JSONDecodeError):
        raise FlashmixError(f"{path} holds no training state; remove it to start anew") from None
    return state


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the weights of ``model`` to ``path``."""
    _write(path, weights(model), {})


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that :func:`save_weights` wrote."""
    return _read(path)[0]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that share memory once."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach() for name, value in named.items()}


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy ``tensors`` from ``path`` into ``model``.

    Raises:
        FlashmixError: they are not those of this model.
    """
    own = weights(model)
    if own.keys() != tensors.keys() or any(own[n].shape != t.shape for n, t in tensors.items()):
        raise FlashmixError(f"{path} holds the weights of another model; remove it to start anew")
    for name, value in own.items():
        value.copy_(tensors[name])


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    from safetensors.torch import save

    write_whole(path, save({name: t.contiguous() for name, t in tensors.items()}, header))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise FlashmixError(f"{path} is not safetensors: {error}") from None

"""A model may be called and changed within :func:`untouched`, and is as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module, layers: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Keep modules, hooks, modes, configs, buffers, which parameters train, and the random state.

    ``layers`` are modules that are to stand in ``model`` and do not yet.
    """
    modules = {id(part): part for module in (model, *layers) for part in module.modules()}
    owners = [*modules.values(), *_configs(modules.values())]
    before = [
        (
            vars(owner),
            dict(vars(owner)),
            {k: v.copy() for k, v in vars(owner).items() if isinstance(v, dict)},
        )
        for owner in owners
    ]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    trained = [(p, p.requires_grad) for module in (model, *layers) for p in module.parameters()]
    try:
        with random_state_kept(model):
            yield
    finally:
        for now, names, inner in before:
            now.clear()
            now.update(names)
            for name, entries in inner.items():
                names[name].clear()
                names[name].update(entries)
        for parameter, trains in trained:
            parameter.requires_grad_(trains)
        with torch.no_grad():
            for buffer, was in buffers:
                if not buffer.is_meta and not torch.equal(buffer, was):
                    buffer.copy_(was)


def random_state_kept(model: nn.Module) -> AbstractContextManager[None]:
    """The random state of the CPU and of the model's GPUs is the same afterwards."""
    gpus = {parameter.get_device() for parameter in model.parameters() if parameter.is_cuda}
    return torch.random.fork_rng(devices=gpus)


def _configs(modules: Iterable[nn.Module]) -> list[Any]:
    """The configs of the modules, and the configs within these."""
    from transformers import PreTrainedConfig

    found: dict[int, Any] = {}
    waiting = [getattr(module, "config", None) for module in modules]
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting.extend(vars(config).values())
    return list(found.values())

"""Token mixers for PyTorch, attention and what can stand in for it, with honest measurements.

    >>> import flashmix
    >>> mixer = flashmix.create_mixer("fnet", dim=256)
    >>> y = mixer(x, mask)  # x, y [B, N, D]; mask [B, N] bool, True = a real token

Names are loaded on first use, so that ``import flashmix`` costs nothing beyond definitions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flashmix._version import __version__

if TYPE_CHECKING:
    from flashmix import bench, hf, mixers, models, ops, parallel, report, tasks, visualize
    from flashmix.bench import profile
    from flashmix.hf import (
        from_pretrained,
        mixers_of,
        register_attention,
        set_mixer,
        swap,
        swap_report,
    )
    from flashmix.mixers import create_mixer, list_mixers, register_mixer
    from flashmix.ops import explain, pack, register_implementation, unpack

__all__ = [
    "__version__",
    "bench",
    "create_mixer",
    "explain",
    "from_pretrained",
    "hf",
    "list_mixers",
    "mixers",
    "mixers_of",
    "models",
    "ops",
    "pack",
    "parallel",
    "profile",
    "register_attention",
    "register_implementation",
    "register_mixer",
    "report",
    "set_mixer",
    "swap",
    "swap_report",
    "tasks",
    "unpack",
    "visualize",
]

_MODULES = {"bench", "hf", "mixers", "models", "ops", "parallel", "report", "tasks", "visualize"}
_FUNCTIONS = {
    "create_mixer": "mixers",
    "explain": "ops",
    "from_pretrained": "hf",
    "list_mixers": "mixers",
    "mixers_of": "hf",
    "pack": "ops",
    "profile": "bench",
    "register_attention": "hf",
    "register_implementation": "ops",
    "register_mixer": "mixers",
    "set_mixer": "hf",
    "swap": "hf",
    "swap_report": "hf",
    "unpack": "ops",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"flashmix.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"flashmix.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'flashmix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

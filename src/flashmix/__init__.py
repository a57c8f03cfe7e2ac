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
    from flashmix import bench, mixers, models, ops, report, tasks
    from flashmix.mixers import create_mixer, list_mixers
    from flashmix.ops import explain

__all__ = [
    "__version__",
    "bench",
    "create_mixer",
    "explain",
    "list_mixers",
    "mixers",
    "models",
    "ops",
    "report",
    "tasks",
]

_MODULES = {"bench", "mixers", "models", "ops", "report", "tasks"}
_FUNCTIONS = {"create_mixer": "mixers", "list_mixers": "mixers", "explain": "ops"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"flashmix.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"flashmix.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'flashmix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

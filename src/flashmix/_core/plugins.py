"""What installed packages bring, as entry points."""

from __future__ import annotations

import warnings
from importlib.metadata import entry_points
from types import ModuleType

_loaded: set[str] = set()


def load_plugins(group: str) -> None:
    """Load what each entry point of the group names, once in a process.

    It is a module that registers something when it is imported, or a function without arguments
    that does when it is called. One that fails is left out with a warning.
    """
    if group in _loaded:
        return
    _loaded.add(group)
    for point in entry_points(group=group):
        try:
            loaded = point.load()
            if not isinstance(loaded, ModuleType):
                loaded()
        except Exception as error:
            warnings.warn(
                f"flashmix leaves out {point.value!r} of the entry points {group!r}: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )

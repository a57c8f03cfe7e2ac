"""Implementations that installed packages bring, as entry points."""

from __future__ import annotations

import functools
import warnings
from importlib.metadata import entry_points

from flashmix.ops._compile import constant_in_graphs

GROUP = "flashmix.implementations"


@constant_in_graphs
def load_plugins() -> None:
    """Call what each entry point of the group names, once in a process.

    It is a function without arguments that calls :func:`flashmix.register_implementation`. One
    that fails is left out with a warning.
    """
    _load()


@functools.cache
def _load() -> None:
    for point in entry_points(group=GROUP):
        try:
            point.load()()
        except Exception as error:
            warnings.warn(
                f"flashmix leaves out the implementations of {point.value!r}: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )

"""The mixers by name: those of the package, and those that others registered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashmix._core.plugins import load_plugins
from flashmix.errors import unknown_choice

if TYPE_CHECKING:
    from flashmix.mixers._base import Mixer

GROUP = "flashmix.mixers"
"""The entry points of installed packages that register mixers."""

MIXERS: dict[str, type[Mixer]] = {}
"""The class of each mixer; :func:`flashmix.register_mixer` adds one."""


def registered_mixers() -> dict[str, type[Mixer]]:
    """:data:`MIXERS`, once installed packages have registered theirs."""
    load_plugins(GROUP)
    return MIXERS


def find_mixer(name: str) -> type[Mixer]:
    """The class of the mixer called ``name``.

    Raises:
        ArgumentError: there is none of that name (the choices are listed).
    """
    # Installed packages are imported only where the name is not one of the package's own.
    if name not in MIXERS and name not in registered_mixers():
        raise unknown_choice("mixer", name, MIXERS)
    return MIXERS[name]

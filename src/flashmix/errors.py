"""The errors flashmix raises on purpose; every message says what was wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from flashmix._text import visible

__all__ = [
    "ArgumentError",
    "FlashmixError",
    "ImplementationError",
    "MissingDependencyError",
    "ModelError",
    "ParallelError",
]

SHOWN = 120
"""Characters of a value in a message."""


class FlashmixError(Exception):
    """Base class of every error that flashmix raises on purpose.

    Its text never holds a control character: names and paths in it are whatever somebody wrote.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class ArgumentError(FlashmixError, ValueError):
    """An argument has the wrong type, shape, dtype or value."""


class ImplementationError(FlashmixError, RuntimeError):
    """The requested implementation cannot run here; it never falls back silently."""


class ModelError(FlashmixError, ValueError):
    """A model has a part that the swap does not understand or cannot replace; it names it."""


class ParallelError(FlashmixError, RuntimeError):
    """Ranks that share a sequence disagree, or one of them failed, died or took too long."""


class MissingDependencyError(FlashmixError, ImportError):
    """An optional dependency is needed and absent; the message holds the install command."""


def missing_extra(package: str, extra: str, purpose: str) -> MissingDependencyError:
    """Build the one sentence that names the missing package and the command that installs it."""
    return MissingDependencyError(
        f"{purpose} needs {package}, which is not installed; run: pip install 'flashmix[{extra}]'"
    )


def shown(value: object) -> str:
    """``repr(value)``, cut where it is long."""
    text = repr(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def unknown_choice(what: str, got: object, choices: Iterable[str]) -> ArgumentError:
    """Build the error for a name that is not among the choices, with the nearest suggested."""
    names = sorted(choices)
    near = difflib.get_close_matches(str(got)[:SHOWN], names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ArgumentError(f"unknown {what} {shown(got)}{hint} Choices: {', '.join(names)}")

"""How a mixer gets its name: ``@register_mixer`` on its class, here or outside the package."""

from __future__ import annotations

import inspect
from typing import TypeVar

from flashmix.errors import ArgumentError, shown
from flashmix.mixers._base import Mixer
from flashmix.mixers.registry import MIXERS
from flashmix.mixers.spec import WORD
from flashmix.ops import OPERATORS

Kind = TypeVar("Kind", bound=type[Mixer])

RESERVED = ("copy",)
"""What benchmarks call a copy of the tokens, beside the mixers' names."""


def register_mixer(kind: Kind) -> Kind:
    """Give a mixer its name, by which patterns, ``swap``, the command line and suites take it.

        >>> @flashmix.register_mixer
        ... class Mean(Mixer): ...

    All that is known of it stands in its class, see :class:`flashmix.mixers.Mixer`, and its name in
    its ``Config``. A package that is installed can do it without being imported: it names, as an
    entry point of the group ``flashmix.mixers``, the module, or a function without arguments that
    calls this.

    Args:
        kind: a subclass of :class:`flashmix.mixers.Mixer` with a ``Config`` of its own.

    Returns:
        ``kind`` itself.

    Raises:
        ArgumentError: it is no mixer, its config does not fit, or the name is taken.
    """
    if not (inspect.isclass(kind) and issubclass(kind, Mixer)):
        raise ArgumentError(f"register_mixer: expected a subclass of Mixer, got {shown(kind)}")
    where = f"register_mixer: {kind.__name__}"
    if missing := sorted(kind.__abstractmethods__):
        raise ArgumentError(f"{where} must define {', '.join(missing)}")
    for name in ("summary", "cost", "Config"):
        if not hasattr(kind, name):
            raise ArgumentError(f"{where} must have the class attribute {name}")
    name, options = kind.Config.__dict__.get("name", ""), kind.Config.options()
    if "Config" not in kind.__dict__ or not name:
        raise ArgumentError(
            f"{where} must have a Config of its own that sets name; derive it from "
            f"{kind.Config.__name__}"
        )
    if not isinstance(name, str) or not WORD.fullmatch(name) or name in RESERVED:
        raise ArgumentError(
            f"{where}: the name must be a word of letters, digits, '_' and '-', not "
            f"{' or '.join(map(repr, RESERVED))}, got {shown(name)}"
        )
    if kind.op and kind.op not in OPERATORS:
        raise ArgumentError(
            f"{where}: op must be one of {', '.join(OPERATORS)}, or '', got {shown(kind.op)}"
        )
    parameters = inspect.signature(kind).parameters
    unknown = [option for option in ("dim", *options) if option not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise ArgumentError(f"{where}.__init__ must take {', '.join(unknown)}, as its Config does")
    if MIXERS.setdefault(name, kind) is not kind:
        raise ArgumentError(
            f"{where}: there is a mixer called {name!r}, {MIXERS[name].__name__}; choose another "
            "name"
        )
    return kind

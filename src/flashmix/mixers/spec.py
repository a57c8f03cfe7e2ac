"""Mixers as text: ``fnet``, ``local(window=64)``, ``spectral+local``, and patterns over layers.

Grammar: pattern = layers ("," layers)*; layers = mixer ["*" count]; mixer = part ("+" part)*;
part = name ["(" key "=" value ("," key "=" value)* ")"]. A value is a number, True, False, None, a
word, quoted text, or values in parentheses or brackets: (1, 2).

Text may come from a config that somebody else wrote: length, depth, numbers and layers have bounds,
and what is read takes time in proportion to its length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from flashmix.errors import ArgumentError, shown
from flashmix.mixers.config import MixerConfig, check_options
from flashmix.mixers.registry import find_mixer

if TYPE_CHECKING:
    from flashmix.mixers._base import Mixer

MAX_LENGTH = 10_000
"""Characters of a pattern."""
MAX_MIXER = 1_000
"""Characters of a mixer."""
MAX_DEPTH = 8
"""Brackets within brackets."""
MAX_LAYERS = 999_999
CLOSING = {"(": ")", "[": "]"}

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
DECIMAL = re.compile(r"[+-]?([0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18})(e[+-]?[0-9]{1,2})?")
QUOTED = re.compile(r"""'(?:[^'\\]|\\['"\\])*'|"(?:[^"\\]|\\['"\\])*\"""")
CONSTANTS: dict[str, Any] = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class MixerSpec:
    """A mixer's name and options, ready to be built at any width."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self, dim: int, *, num_heads: int | None = None, impl: str = "auto") -> MixerConfig:
        """The mixer's config at width ``dim``.

        ``num_heads`` and ``impl`` are shared by the layers of a model: a mixer's own options win
        over them, and one without heads has no use for ``num_heads``.

        Raises:
            ArgumentError: an unknown name or option (the choices are listed), or a bad value.
        """
        check_options(self.name, self.options)
        kind, shared = find_mixer(self.name).Config, {"num_heads": num_heads, "impl": impl}
        shared = {name: value for name, value in shared.items() if name in kind.options()}
        return kind(dim=dim, **{**shared, **self.options})

    def build(self, dim: int, *, num_heads: int | None = None, impl: str = "auto") -> Mixer:
        """Create the mixer of :meth:`config`."""
        return self.config(dim, num_heads=num_heads, impl=impl).build()

    @classmethod
    def from_config(cls, config: MixerConfig) -> Self:
        """The shortest spec that builds ``config`` at its width."""
        options = {name: _as_text(getattr(config, name)) for name in config.options()}
        for name in tuple(options):
            fewer = {other: value for other, value in options.items() if other != name}
            with suppress(ArgumentError, TypeError):  # others need the option, or it has no default
                if type(config)(dim=config.dim, **fewer) == config:
                    options = fewer
        return cls(config.name, options)

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


def split_list(text: str, separator: str = ",") -> list[str]:
    """``text`` cut at ``separator`` outside brackets and quotes.

    Raises:
        ArgumentError: brackets or quotes are not balanced, or there is too much of them or of text.
    """
    _check_length(text, MAX_LENGTH)
    pieces: list[str] = []
    closing: list[str] = []
    quote, escaped, start = "", False, 0
    for place, char in enumerate(text):
        if quote:
            if char == quote and not escaped:
                quote = ""
            escaped = char == "\\" and not escaped
        elif char in "'\"":
            quote = char
        elif char in CLOSING:
            closing.append(CLOSING[char])
            if len(closing) > MAX_DEPTH:
                raise ArgumentError(
                    f"mixer {shown(text)}: brackets may be {MAX_DEPTH} deep at most"
                )
        elif char in CLOSING.values():
            if not closing or closing.pop() != char:
                raise ArgumentError(f"mixer {shown(text)}: unbalanced parentheses or quotes")
        elif char == separator and not closing:
            pieces.append(text[start:place])
            start = place + 1
    if closing or quote:
        raise ArgumentError(f"mixer {shown(text)}: unbalanced parentheses or quotes")
    return [piece.strip() for piece in (*pieces, text[start:])]


def _as_text(value: Any) -> Any:
    """``value`` with mixers in it as text."""
    if isinstance(value, MixerConfig):
        return str(MixerSpec.from_config(value))
    return tuple(map(_as_text, value)) if isinstance(value, tuple) else value


def _check_length(text: str, most: int) -> None:
    if len(text) > most:
        raise ArgumentError(
            f"mixer {shown(text)}: at most {most} characters are read, got {len(text)}"
        )


def parse_mixer(text: str) -> MixerSpec:
    """Parse one mixer, for example "fnet", "local(window=64)" or "spectral+local".

    Raises:
        ArgumentError: the text does not follow the grammar.
    """
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError(f"a mixer must be a name such as 'fnet', got {shown(text)}")
    _check_length(text, MAX_MIXER)
    parts = split_list(text, "+")
    if len(parts) > 1:
        if not all(parts):
            raise ArgumentError(f"mixer {shown(text)}: a name is missing beside '+'")
        return MixerSpec("hybrid", {"mixers": tuple(parts)})
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return MixerSpec(name)
    if not rest.endswith(")"):
        raise ArgumentError(f"mixer {shown(text)}: expected ')' at the end")
    options: dict[str, Any] = {}
    for pair in split_list(rest[:-1], ","):
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not equals or not WORD.fullmatch(key):
            raise ArgumentError(f"mixer {shown(text)}: expected key=value, got {shown(pair)}")
        if key in options:
            raise ArgumentError(f"mixer {shown(text)}: option {key!r} is given twice; keep one")
        options[key] = _value(value, text)
    return MixerSpec(name.strip(), options)


def _value(value: str, text: str) -> Any:
    """What ``value`` in ``text`` says."""
    if value in CONSTANTS:
        return CONSTANTS[value]
    if WORD.fullmatch(value):
        return value
    if INTEGER.fullmatch(value):
        return int(value)
    if DECIMAL.fullmatch(value):
        return float(value)
    if QUOTED.fullmatch(value):
        return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
    if value and CLOSING.get(value[0]) == value[-1]:
        items = split_list(value[1:-1])
        items = items[:-1] if not items[-1] else items  # (1,) and ()
        found = [_value(item, text) for item in items]
        return found if value[0] == "[" else tuple(found)
    raise ArgumentError(
        f"mixer {shown(text)}: {shown(value)} is no value; write a number of at most 18 digits, "
        "True, False, None, a word, quoted text, or several in parentheses"
    )


def parse_layers(text: str) -> list[MixerSpec]:
    """The layers that a pattern names: "fnet*2,attention" names three.

    Raises:
        ArgumentError: the text does not follow the grammar.
    """
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError(
            f"a pattern must be text such as 'fnet*10,attention*2', got {shown(text)}"
        )
    layers: list[MixerSpec] = []
    for piece in split_list(text, ","):
        mixer, *counts = split_list(piece, "*")
        if not mixer:
            raise ArgumentError(f"pattern {shown(text)}: a mixer is missing in {shown(piece)}")
        if len(counts) > 1 or not all(re.fullmatch("[1-9][0-9]{0,5}", count) for count in counts):
            raise ArgumentError(
                f"pattern {shown(text)}: {shown(piece)} must be a mixer, or a mixer*count with "
                f"count from 1 to {MAX_LAYERS}"
            )
        count = int(counts[0]) if counts else 1
        if len(layers) + count > MAX_LAYERS:
            raise ArgumentError(
                f"pattern {shown(text)}: at most {MAX_LAYERS} layers may be named, got more"
            )
        layers += [parse_mixer(mixer)] * count
    return layers


def parse_pattern(text: str, depth: int) -> list[MixerSpec]:
    """One mixer for each of ``depth`` layers: "fnet*10,attention*2", or "local,spectral" repeated.

    A pattern shorter than ``depth`` repeats; its length must divide ``depth``.

    Raises:
        ArgumentError: the text does not follow the grammar, or does not fit ``depth``.
    """
    layers = parse_layers(text)
    if depth % len(layers):
        raise ArgumentError(
            f"pattern {shown(text)} names {len(layers)} layers, which does not divide depth "
            f"{depth}; make the counts add up to the depth or to a divisor of it"
        )
    return layers * (depth // len(layers))

"""Mixers as text: ``fnet``, ``local(window=64)``, ``spectral+local``, and patterns over layers.

Grammar: pattern = layers ("," layers)*; layers = mixer ["*" count]; mixer = part ("+" part)*;
part = name ["(" key "=" value ("," key "=" value)* ")"]. Values are Python literals.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flashmix.errors import ArgumentError

if TYPE_CHECKING:
    from flashmix.mixers._base import Mixer


@dataclass(frozen=True)
class MixerSpec:
    """A mixer's name and options, ready to be built at any width."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, dim: int, *, num_heads: int | None = None, impl: str = "auto") -> Mixer:
        """Create the mixer; its own options win over ``num_heads`` and ``impl``."""
        from flashmix.mixers import create_mixer

        options = {"num_heads": num_heads, "impl": impl, **self.options}
        return create_mixer(self.name, dim, **options)

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


def split_list(text: str, separator: str = ",") -> list[str]:
    """``text`` cut at ``separator`` outside parentheses and quotes."""
    pieces, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == separator and not depth:
            pieces.append("")
            continue
        pieces[-1] += char
    if depth or quote:
        raise ArgumentError(f"mixer {text!r}: unbalanced parentheses or quotes")
    return [piece.strip() for piece in pieces]


def parse_mixer(text: str) -> MixerSpec:
    """Parse one mixer, for example "fnet", "local(window=64)" or "spectral+local".

    Raises:
        ArgumentError: the text does not follow the grammar.
    """
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError(f"a mixer must be a name such as 'fnet', got {text!r}")
    parts = split_list(text, "+")
    if len(parts) > 1:
        if not all(parts):
            raise ArgumentError(f"mixer {text!r}: a name is missing beside '+'")
        return MixerSpec("hybrid", {"mixers": tuple(parts)})
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return MixerSpec(name)
    if not rest.endswith(")"):
        raise ArgumentError(f"mixer {text!r}: expected ')' at the end")
    options = {}
    for pair in split_list(rest[:-1], ","):
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not equals or not key.isidentifier():
            raise ArgumentError(f"mixer {text!r}: expected key=value, got {pair!r}")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            options[key] = value  # a bare word such as selection=block is a string
    return MixerSpec(name.strip(), options)


def parse_layers(text: str) -> list[MixerSpec]:
    """The layers that a pattern names: "fnet*2,attention" names three.

    Raises:
        ArgumentError: the text does not follow the grammar.
    """
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError(f"a pattern must be text such as 'fnet*10,attention*2', got {text!r}")
    layers: list[MixerSpec] = []
    for piece in split_list(text, ","):
        mixer, *counts = split_list(piece, "*")
        if not mixer:
            raise ArgumentError(f"pattern {text!r}: a mixer is missing in {piece!r}")
        if len(counts) > 1 or not all(re.fullmatch("[1-9][0-9]{0,5}", count) for count in counts):
            raise ArgumentError(
                f"pattern {text!r}: {piece!r} must be a mixer, or a mixer*count with count from 1 "
                "to 999999"
            )
        layers += [parse_mixer(mixer)] * (int(counts[0]) if counts else 1)
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
            f"pattern {text!r} names {len(layers)} layers, which does not divide depth {depth}; "
            "make the counts add up to the depth or to a divisor of it"
        )
    return layers * (depth // len(layers))

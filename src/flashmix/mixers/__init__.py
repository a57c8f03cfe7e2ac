"""Token mixers as modules with one interface: ``mixer(x, mask=None) -> y``, both [B, N, D].

To add a mixer, give it a file, and list its class in MIXERS.
"""

from __future__ import annotations

import fnmatch
import inspect
from typing import Any

from flashmix.errors import ArgumentError, shown, unknown_choice
from flashmix.mixers._base import Mixer
from flashmix.mixers.attention import Attention
from flashmix.mixers.fnet import FNet
from flashmix.mixers.fourier import FourierAttention
from flashmix.mixers.hybrid import Hybrid
from flashmix.mixers.local import LocalAttention
from flashmix.mixers.spec import MixerSpec, parse_layers, parse_mixer, parse_pattern
from flashmix.mixers.spectral import Spectral
from flashmix.mixers.topk import TopKAttention

__all__ = [
    "MIXERS",
    "Attention",
    "FNet",
    "FourierAttention",
    "Hybrid",
    "LocalAttention",
    "Mixer",
    "MixerSpec",
    "Spectral",
    "TopKAttention",
    "create_mixer",
    "list_mixers",
    "parse_layers",
    "parse_mixer",
    "parse_pattern",
]

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "local": LocalAttention,
    "topk": TopKAttention,
    "fnet": FNet,
    "spectral": Spectral,
    "fourier": FourierAttention,
    "hybrid": Hybrid,
}


def list_mixers(pattern: str = "*") -> list[str]:
    """Names of mixers that match a shell-style ``pattern``, for example ``list_mixers("f*")``."""
    return [name for name in MIXERS if fnmatch.fnmatchcase(name, pattern)]


def create_mixer(name: str, dim: int, *, num_heads: int | None = None, **options: Any) -> Mixer:
    """Create a mixer by name.

        >>> create_mixer("local", 256, window=64)
        >>> create_mixer("local(window=64)", 256)
        >>> create_mixer("spectral+local", 256)

    Args:
        name: one of :func:`list_mixers`, with options in brackets where wanted; names joined by
            "+" make a :class:`Hybrid`.
        dim: width D.
        num_heads: heads of the mixers that have them (a divisor of ``dim``; heads of width 64 by
            default); the others take no notice of it.
        **options: the mixer's own options, for example ``window=64``.

    Raises:
        ArgumentError: an unknown name or option (the choices are listed), a bad value, or an option
            that is given both in the text and as an argument.
    """
    spec = parse_mixer(name)
    if spec.name not in MIXERS:
        raise unknown_choice("mixer", spec.name, MIXERS)
    kind = MIXERS[spec.name]
    choices = mixer_options(spec.name)
    named = {**options, **({} if num_heads is None else {"num_heads": num_heads})}
    if twice := named.keys() & spec.options.keys():
        raise ArgumentError(
            f"create_mixer: {', '.join(sorted(twice))} of {shown(name)} is given in the text and "
            "as an argument; keep one"
        )
    options |= spec.options
    for option in options:
        if option not in choices:
            raise unknown_choice(f"option of mixer {spec.name!r}:", option, choices)
    if "num_heads" in choices:
        options.setdefault("num_heads", num_heads)
    return kind(dim, **options)


def mixer_options(name: str) -> dict[str, Any]:
    """A mixer's options with their defaults."""
    parameters = inspect.signature(MIXERS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

"""Token mixers as modules with one interface: ``mixer(x, mask=None) -> y``, both [B, N, D].

To add a mixer, give it a file that registers it, and a line among the imports below.
"""

from __future__ import annotations

import fnmatch
from typing import Any, overload

from flashmix.errors import ArgumentError, shown

# In the order in which they are listed everywhere.
# isort: off
from flashmix.mixers.attention import Attention, AttentionConfig
from flashmix.mixers.local import LocalAttention, LocalAttentionConfig
from flashmix.mixers.topk import TopKAttention, TopKAttentionConfig
from flashmix.mixers.fnet import FNet, FNetConfig
from flashmix.mixers.spectral import Spectral, SpectralConfig
from flashmix.mixers.fourier import FourierAttention, FourierAttentionConfig
from flashmix.mixers.hybrid import Hybrid, HybridConfig

# isort: on
from flashmix.mixers._base import Mixer, QKVMixer
from flashmix.mixers._heads import Heads
from flashmix.mixers.config import MixerConfig, QKVConfig
from flashmix.mixers.declaration import Benchmarks
from flashmix.mixers.registration import register_mixer
from flashmix.mixers.registry import MIXERS, find_mixer, registered_mixers
from flashmix.mixers.spec import MixerSpec, parse_layers, parse_mixer, parse_pattern

__all__ = [
    "MIXERS",
    "Attention",
    "AttentionConfig",
    "Benchmarks",
    "FNet",
    "FNetConfig",
    "FourierAttention",
    "FourierAttentionConfig",
    "Heads",
    "Hybrid",
    "HybridConfig",
    "LocalAttention",
    "LocalAttentionConfig",
    "Mixer",
    "MixerConfig",
    "MixerSpec",
    "QKVConfig",
    "QKVMixer",
    "Spectral",
    "SpectralConfig",
    "TopKAttention",
    "TopKAttentionConfig",
    "create_mixer",
    "list_mixers",
    "parse_layers",
    "parse_mixer",
    "parse_pattern",
    "register_mixer",
]


def list_mixers(pattern: str = "*") -> list[str]:
    """Names of mixers that match a shell-style ``pattern``, for example ``list_mixers("f*")``."""
    return [name for name in registered_mixers() if fnmatch.fnmatchcase(name, pattern)]


@overload
def create_mixer(name: MixerConfig) -> Mixer: ...
@overload
def create_mixer(name: str, dim: int, *, num_heads: int | None = None, **options: Any) -> Mixer: ...
def create_mixer(
    name: str | MixerConfig,
    dim: int | None = None,
    *,
    num_heads: int | None = None,
    **options: Any,
) -> Mixer:
    """Create a mixer by name, or by the config of one.

        >>> create_mixer("local", 256, window=64)
        >>> create_mixer("local(window=64)", 256)
        >>> create_mixer("spectral+local", 256)
        >>> create_mixer(mixer.config)  # another mixer like it, with parameters of its own

    Args:
        name: one of :func:`list_mixers`, with options in brackets where wanted; names joined by
            "+" make a :class:`Hybrid`. Or a config, which holds everything: see
            :class:`MixerConfig`.
        dim: width D.
        num_heads: heads of a mixer that has them, a divisor of ``dim``; heads of width 64 by
            default.
        **options: the mixer's own options, for example ``window=64``.

    Raises:
        ArgumentError: an unknown name or option (the choices are listed), a bad value, or an option
            that is given both in the text, or the config, and as an argument.
    """
    if num_heads is not None:
        options = {"num_heads": num_heads, **options}
    if isinstance(name, MixerConfig):
        given = [*(["dim"] if dim is not None else []), *options]
        if given:
            raise ArgumentError(
                f"create_mixer: {', '.join(given)} is given as an argument and by the config; "
                "change the config with dataclasses.replace"
            )
        return name.build()
    spec = parse_mixer(name)
    if twice := options.keys() & spec.options.keys():
        raise ArgumentError(
            f"create_mixer: {', '.join(sorted(twice))} of {shown(name)} is given in the text and "
            "as an argument; keep one"
        )
    if dim is None:
        raise ArgumentError(f"create_mixer: {shown(name)} needs dim, the width D")
    return MixerSpec(spec.name, {**options, **spec.options}).build(dim)


def mixer_options(name: str) -> dict[str, Any]:
    """A mixer's options with their defaults."""
    return find_mixer(name).Config.options()

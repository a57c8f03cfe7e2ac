"""What a mixer is built from, as frozen data: ``mixer.config`` gives it, ``create_mixer`` takes it.

A config is checked when it is made, and its defaults that depend on the width are numbers then.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from flashmix.errors import ArgumentError, shown, unknown_choice
from flashmix.mixers.registry import find_mixer, registered_mixers
from flashmix.ops import OPERATORS, _checks

if TYPE_CHECKING:
    from flashmix.mixers._base import Mixer

HEAD_WIDTH = 64

BUILT_ONLY: Mapping[str, Any] = MappingProxyType({"built": True})
"""Metadata of a field that is no attribute: the mixer's modules or parameters have its name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """The options of a mixer, most of them attributes of the mixer too.

    Attributes:
        dim: width D.
        impl: "auto", or the name of an implementation of the mixer's op.
    """

    name: ClassVar[str] = ""
    """The mixer's name, by which :func:`flashmix.create_mixer` knows it."""
    op: ClassVar[str] = ""
    """The operator that mixes; "" where there is none, or the parts have their own."""

    dim: int
    impl: str = "auto"

    def __post_init__(self) -> None:
        _checks.check_count(self.where, "dim", self.dim)
        if self.op and self.impl != "auto":
            OPERATORS[self.op].check_impl(self.impl)

    @property
    def where(self) -> str:
        """The class of the mixer, as errors name it."""
        return type(self).__name__.removesuffix("Config")

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The options with their defaults, without ``dim``."""
        fields = {f.name: f.default for f in dataclasses.fields(cls) if f.name != "dim"}
        impl = fields.pop("impl")
        return {**fields, "impl": impl}

    @classmethod
    def attributes(cls) -> list[str]:
        """The fields that are attributes of the mixer, ``dim`` too."""
        built = {field.name for field in dataclasses.fields(cls) if "built" in field.metadata}
        return ["dim", *(name for name in cls.options() if name not in built)]

    def build(self) -> Mixer:
        """A mixer with these options, and parameters of its own."""
        values = {name: getattr(self, name) for name in self.options()}
        kind: Any = find_mixer(self.name)
        mixer: Mixer = kind(self.dim, **values)
        return mixer

    def to_dict(self) -> dict[str, Any]:
        """The name and the options, in values that JSON holds; :meth:`from_dict` takes them."""
        values = {name: _plain(getattr(self, name)) for name in self.options()}
        return {"name": self.name, "dim": self.dim, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config that :meth:`to_dict` gave ``values`` of; options may be left out.

        Raises:
            ArgumentError: an unknown name or option, one that is missing, or a bad value.
        """
        if not isinstance(values, Mapping):
            raise ArgumentError(f"a mixer's config must be a mapping, got {shown(values)}")
        options = dict(values)
        name = options.pop("name", cls.name)
        kinds = registered_mixers()
        names = [key for key, kind in kinds.items() if issubclass(kind.Config, cls)]
        if name not in names:
            raise unknown_choice("name in a mixer's config:", name, names)
        if "dim" not in options:
            raise ArgumentError(f"the config of mixer {name!r} must give dim, its width D")
        dim = options.pop("dim")
        check_options(name, options)
        return kinds[name].Config(dim=dim, **options)  # type: ignore[return-value]

    def operations(self, seq_len: int) -> float:
        """Arithmetic of mixing a token of ``seq_len``, about, without the projections' share.

        By default that of Fourier transforms.
        """
        return 10.0 * self.dim * math.log2(seq_len * self.dim)

    def _resolve(self, **values: Any) -> None:
        """Set fields of the frozen config, while it is made."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ArgumentError unless mixer ``name`` has all ``options``."""
    choices = find_mixer(name).Config.options()
    for option in options:
        if option not in choices:
            raise unknown_choice(f"option of mixer {name!r}:", option, choices)


def _plain(value: Any) -> Any:
    if isinstance(value, MixerConfig):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def head_count(where: str, dim: int, num_heads: int | None) -> int:
    """``num_heads``, or by default heads of width 64 where they divide ``dim``, else one."""
    if num_heads is None:
        return dim // HEAD_WIDTH if dim % HEAD_WIDTH == 0 else 1
    _checks.check_count(where, "num_heads", num_heads)
    if dim % num_heads:
        raise ArgumentError(f"{where}: num_heads must divide dim = {dim}, got {num_heads}")
    return num_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class QKVConfig(MixerConfig):
    """The options of mixers with q, k, v and output projections.

    Attributes:
        dim: width D.
        num_heads: heads H, a divisor of ``dim``; heads of width 64 by default.
        num_kv_heads: heads of k and v, a divisor of H, each shared by neighbouring heads of q; H
            by default.
        causal: token i sees tokens j <= i only.
        bias: whether the projections have one.
        impl: "auto", or the name of an implementation of the mixer's op.
    """

    num_heads: int | None = None
    num_kv_heads: int | None = None
    causal: bool = False
    bias: bool = dataclasses.field(default=True, metadata=BUILT_ONLY)

    def __post_init__(self) -> None:
        super().__post_init__()
        heads = head_count(self.where, self.dim, self.num_heads)
        shared = heads if self.num_kv_heads is None else self.num_kv_heads
        _checks.check_count(self.where, "num_kv_heads", shared)
        if heads % shared:
            raise ArgumentError(
                f"{self.where}: num_kv_heads must divide num_heads = {heads}, got {shared}"
            )
        self._resolve(num_heads=heads, num_kv_heads=shared)
        _checks.check_flag(self.where, "causal", self.causal)
        _checks.check_flag(self.where, "bias", self.bias)

    def operations(self, seq_len: int) -> float:
        return 4.0 * self.dim * seq_len

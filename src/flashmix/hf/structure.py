"""What the swap has to know of an attention layer, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flashmix.errors import ArgumentError
from flashmix.hf.masks import FULL, Reach


@dataclass(frozen=True)
class Columns:
    """Which channels of a projection are v: ``first`` of head 0, and ``step`` on to the next."""

    first: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What an attention module is like; plain data, which a saved model's config holds.

    Attributes:
        projections: paths of the modules in it that make q, k and v; None for one that is gone. A
            fused projection makes several.
        norms: paths of what else q and k pass that has parameters, which go with them.
        num_heads, num_kv_heads, head_dim: of q, of k and v, and the width of each.
        columns: which channels of its projection v is.
        channels: how many channels the projections of q, k and v have.
        reach: how many tokens before and after itself each sees; None for all.
        tokens: whether the tokens themselves can pass in place of v.
        unread: channels of the zeros that pass in place of q and k; None where nothing can.
        relative: whether it adds relative positions to its scores.
        absolute: whether the model has absolute positions besides.
        biased: whether its mask adds to scores.
        plain: whether q, k and v are the outputs of three projections cut into heads, no more, and
            nothing is added to their scores.
    """

    projections: Mapping[str, str | None]
    norms: Mapping[str, tuple[str, ...]]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    columns: Columns
    channels: Mapping[str, int]
    reach: Reach = FULL
    tokens: bool = False
    unread: Mapping[str, int] | None = None
    relative: bool = False
    absolute: bool = False
    biased: bool = False
    plain: bool = False

    @property
    def dim(self) -> int:
        """Width of what is mixed, H * dh."""
        return self.num_heads * self.head_dim

    @classmethod
    def from_dict(cls, values: Any) -> Structure:
        """The structure that :func:`dataclasses.asdict` gave ``values`` of, through JSON.

        Raises:
            ArgumentError: they are not such values.
        """
        try:
            made = cls(
                **{
                    **values,
                    "projections": {part: values["projections"][part] for part in "qkv"},
                    "norms": {part: tuple(values["norms"][part]) for part in "qk"},
                    "columns": Columns(**values["columns"]),
                    "reach": tuple(values["reach"]),
                }
            )
            unread = made.unread or dict.fromkeys("qk", 0)
            numbers = [made.num_heads, made.num_kv_heads, made.head_dim]
            numbers += [made.columns.first, made.columns.step]
            numbers += [made.channels[part] for part in "qkv"] + [unread[part] for part in "qk"]
            names = [made.projections[part] for part in "qkv"]
            names += [norm for part in "qk" for norm in made.norms[part]]
            if (
                all(type(number) is int and number >= 0 for number in numbers)
                and all(name is None or isinstance(name, str) for name in names)
                and len(made.reach) == 2
                and all(side is None or type(side) is int for side in made.reach)
            ):
                return made
        except (AttributeError, KeyError, TypeError, ValueError):
            pass
        raise ArgumentError(f"this is no structure of a swapped layer: {values!r:.200}")

    def without(self, *parts: str) -> Structure:
        """The structure without the projections of ``parts``, and without their norms."""
        return dataclasses.replace(
            self,
            projections={p: None if p in parts else path for p, path in self.projections.items()},
            norms={p: () if p in parts else paths for p, paths in self.norms.items()},
        )

    @property
    def gone(self) -> str:
        """Which of q, k and v it has no longer."""
        return "".join(part for part in "qkv" if self.projections[part] is None)

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one."""
        return self.reach[1] == 0


@dataclass(frozen=True)
class Layer:
    """An attention module, as :func:`find_layers` understood it.

    ``module`` calls the attention interface; it is to stand at ``path`` of a model of the class
    ``owner``, where it may not be yet.
    ``weight`` is a parameter in or near it, whose device and dtype a mixer gets.
    """

    path: str
    module: nn.Module
    owner: str
    weight: Tensor
    structure: Structure

    @property
    def projections(self) -> Mapping[str, str | None]:
        """Paths of the modules in it that make q, k and v; None for one that is gone."""
        return self.structure.projections

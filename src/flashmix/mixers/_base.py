"""What every mixer shares: the interface, and the projections of those that have heads.

Shapes: B batch, N tokens, D width, H heads, dh = D / H width of a head.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from flashmix.errors import ImplementationError
from flashmix.mixers.config import MixerConfig, QKVConfig
from flashmix.ops import _checks
from flashmix.ops._padding import zero_padding

ALWAYS_SHOWN = ("window", "topk", "modes", "impl")
"""Options that ``repr`` shows at their defaults, too."""


class Heads(NamedTuple):
    """q, k and v by head, [B, H, N, dh] each, from projections that another module holds.

    A mixer that is called with them mixes alone; see :meth:`Mixer.mix_heads`.
    """

    q: Tensor
    k: Tensor
    v: Tensor


class AttentionHeads(NamedTuple):
    """q, k and v by head, and how they attend, for models that add to attention's own formula."""

    q: Tensor
    k: Tensor
    v: Tensor
    attend: Callable[[Any, Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """From the mixer, q, k, v and the mask to [B, N, D]."""


class Mixer(nn.Module, ABC):
    """A token mixer: ``mixer(x, mask=None) -> y``, x and y [B, N, D], mask bool [B, N].

    It acts as if the padding (mask False) had been removed, and its output there is zero.
    """

    summary: ClassVar[str]
    cost: ClassVar[str]
    op: ClassVar[str]
    """Name of the operator that mixes, whose implementations ``impl`` names."""
    Config: ClassVar[type[MixerConfig]]
    """The frozen dataclass of its options; see :attr:`config`."""
    reads: str = ""
    """Which of the projections q, k and v its mixing reads: "qkv", "v" or "" (the tokens)."""
    dim: int
    impl: str

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "Config" in cls.__dict__:
            cls.Config.mixer_class, cls.op = cls, cls.Config.op

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self._created = config
        for name in config.attributes():
            setattr(self, name, getattr(config, name))

    @property
    def config(self) -> MixerConfig:
        """The options, as they are now: ``create_mixer(mixer.config)`` gives such a mixer."""
        now = {name: getattr(self, name) for name in self._created.attributes()}
        return dataclasses.replace(self._created, **now)

    def extra_repr(self) -> str:
        """The width, the options that are not the default, and the sizes and ``impl`` always."""
        defaults = self.Config.options()
        options = [
            f"{name}={value!r}"
            for name in self._created.attributes()
            if (value := getattr(self, name)) != defaults.get(name) or name in ALWAYS_SHOWN
        ]
        return ", ".join(options)

    @abstractmethod
    def forward(self, x: Tensor | Heads, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens of ``x`` [B, N, D], or heads as :meth:`mix_heads` does."""

    def mix_heads(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mixing alone, between projections that another module holds.

        This is ``mixer(Heads(q, k, v), mask)``: hooks on the mixer run, as sharding and offloading
        its parameters need.

        Args:
            q, k, v: [B, H, N, dh]; one that :attr:`reads` does not name is ignored, except that
                ``v`` holds the tokens where it names none.
            mask: bool [B, N], True = a real token.

        Returns:
            [B, N, D], the heads side by side, before any output projection; zero at padding.
        """
        y: Tensor = self(Heads(q, k, v), mask)
        return y

    def tokens(self, x: Tensor | Heads, mask: Tensor | None) -> Tensor:
        """The tokens [B, N, D] that ``x`` holds, ``v`` of heads, once they fit.

        Raises:
            ArgumentError: they are not [B, N, D], or ``mask`` does not fit them.
        """
        x = merge_heads(x.v) if isinstance(x, Heads) else x
        self.check(x, mask)
        return x

    def drop_projections(self) -> Self:
        """Delete the projections around the mixing, and return self; :meth:`mix_heads` is left."""
        return self

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        """Raise ArgumentError unless ``x`` is [B, N, D] and ``mask`` fits it."""
        _checks.check_tokens(type(self).__name__, x, mask, self.dim)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, dh] as [B, N, H * dh]."""
    return x.transpose(1, 2).flatten(2)


class QKVMixer(Mixer):
    """A mixer with q, k, v and output projections; subclasses say how heads mix."""

    reads = "qkv"
    num_heads: int
    causal: bool

    def __init__(self, config: QKVConfig) -> None:
        super().__init__(config)
        dim = self.dim
        self.head_dim = dim // self.num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.bias)
        self.out = nn.Linear(dim, dim, bias=config.bias)

    def forward(
        self,
        x: Tensor | Heads | AttentionHeads,
        mask: Tensor | None = None,
        *,
        return_weights: bool = False,
    ) -> Any:
        """Mix the tokens of ``x``.

        Args:
            x: [B, N, D], floating; or :class:`Heads`, which are mixed alone.
            mask: bool [B, N], True = a real token.
            return_weights: also return the weights [B, H, N, N], computed by the reference.

        Returns:
            y [B, N, D], or (y, weights).

        Raises:
            ArgumentError: ``x`` or ``mask`` does not fit.
            ImplementationError: ``impl`` cannot run here, or never holds the weights; or ``qkv`` is
                sharded in another way than by :func:`flashmix.parallel.tp_plan`.
        """
        if isinstance(x, Heads):
            return merge_heads(self.mix(*x, mask))
        if isinstance(x, AttentionHeads):
            return x.attend(self, x.q, x.k, x.v, mask)
        self.check(x, mask)
        # NaN at padding would reach the projections' gradients through 0 * NaN.
        qkv = self.qkv(zero_padding(x, mask))
        if qkv.shape[-1] != 3 * self.dim:
            self._check_shard(qkv, return_weights)
        # Split where they lie, so that their gradients are put together by one copy.
        parts = qkv.unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        weights = None
        if return_weights:
            y, weights = self.mix_with_weights(q, k, v, mask)
        else:
            y = self.mix(q, k, v, mask)
        y = zero_padding(self.out(merge_heads(y)), mask)
        return y if weights is None else (y, weights)

    def _check_shard(self, qkv: Tensor, return_weights: bool) -> None:
        """Raise ImplementationError unless ``qkv`` holds q, k and v of some of the heads."""
        where = type(self).__name__
        if not _sharded_by_heads(self):
            raise ImplementationError(
                f"{where}: qkv gave {qkv.shape[-1]} channels, not 3 * dim = {3 * self.dim}; a "
                "shard of its columns does not hold q, k and v of the same heads. For tensor "
                "parallelism take the plan that flashmix.parallel.tp_plan(model) gives"
            )
        if return_weights:
            raise ImplementationError(
                f"{where}: under tensor parallelism a rank holds the weights of its own heads "
                "alone; ask for them on one device"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Takes q, k and v apart, as :func:`flashmix.parallel.tp_plan` has them, too."""
        if not _sharded_by_heads(self):
            for name in ("weight", "bias"):
                parts = [f"{prefix}qkv.{name}_{part}" for part in "qkv"]
                if all(part in state_dict for part in parts):
                    whole = torch.cat([state_dict.pop(part) for part in parts])
                    state_dict[f"{prefix}qkv.{name}"] = whole
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def drop_projections(self) -> Self:
        del self.qkv, self.out
        return self

    @abstractmethod
    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Mix heads, [B, H, N, dh]."""

    @abstractmethod
    def mix_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mix heads and return the weights [B, H, N, N] too."""


def _sharded_by_heads(mixer: QKVMixer) -> bool:
    """Whether its ``qkv`` is there, and shared among ranks by :func:`flashmix.parallel.tp_plan`."""
    return getattr(getattr(mixer, "qkv", None), "sharded_by_heads", False)


def check_weights_impl(where: str, impl: str) -> None:
    """Only the reference holds the N x N weights; an explicit other ``impl`` raises."""
    if impl not in ("auto", "reference", "naive"):
        raise ImplementationError(
            f"{where}: impl={impl!r} never holds the N x N weights; "
            "return_weights needs impl='auto' or 'reference'"
        )

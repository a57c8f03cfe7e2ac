"""What every mixer shares: the interface, and the projections of those that have heads.

Shapes: B batch, N tokens, D width, H heads, dh = D / H width of a head.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    Self,
    Unpack,
    overload,
)

import torch
from torch import Tensor, nn

from flashmix.errors import ArgumentError, ImplementationError
from flashmix.mixers._heads import (
    AttentionHeads,
    Heads,
    attend_packed,
    merge_heads,
    split_heads,
)
from flashmix.mixers._weights import no_packed_weights
from flashmix.mixers.config import MixerConfig, QKVConfig
from flashmix.mixers.declaration import Benchmarks, Picture
from flashmix.ops import _checks
from flashmix.ops._dense import repeat_heads
from flashmix.ops._packed import Lengths, check_offsets
from flashmix.ops._padding import zero_padding

ALWAYS_SHOWN = ("window", "topk", "modes", "impl")
"""Options that ``repr`` shows at their defaults, too."""


class Sharding(Protocol):
    """How a mixer mixes where its tokens are sharded across ranks; see ``flashmix.parallel``."""

    def mix(self, mixer: Any, inputs: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        """The own slice of ``mixer.mix_whole(*inputs, mask)`` of all ranks' tokens."""

    def broadcast_error(self, error: ArgumentError) -> None:
        """Let the other ranks, which wait for this one, raise ``error`` too."""

    def all_tokens_error(self, what: str) -> ImplementationError:
        """The error where a call asks for ``what``, which needs all tokens on one device."""


class Mixer(nn.Module, ABC):
    """A token mixer: ``mixer(x, mask=None) -> y``, x and y [B, N, D], mask bool [B, N].

    It acts as if the padding (mask False) had been removed, and its output there is zero. Packed
    tokens [T, D] are mixed where ``cu_seqlens`` says which sequence they belong to; see
    :func:`flashmix.pack`.

    The class declares all that the rest of the package knows of it, in the attributes below, and
    its ``Config`` the name, under which :func:`flashmix.register_mixer` lists it.
    """

    summary: ClassVar[str]
    """What it does, in a line."""
    cost: ClassVar[str]
    """How its work grows with N."""
    Config: ClassVar[type[MixerConfig]]
    """The frozen dataclass of its options, with its name and its operator; see :attr:`config`."""
    op: ClassVar[str]
    """Name of the operator that mixes, whose implementations ``impl`` names; from ``Config``."""
    reads: str = ""
    """Which of the projections q, k and v its mixing reads: "qkv", "v" or "" (the tokens)."""
    sharding_strategy: ClassVar[str | None] = None
    """How a sequence of it is sharded across ranks: the :class:`flashmix.parallel.MixerStrategy`,
    as "module:class", which is imported then; None where it cannot be."""
    pictures: frozenset[Picture] = frozenset()
    """What ``flashmix.visualize`` draws of it beside what it draws of any mixer."""
    colour: ClassVar[tuple[str, str] | None] = None
    """Its colour in charts, on a light and on a dark page, as hex; None leaves the choice."""
    benchmarks: ClassVar[Benchmarks] = Benchmarks()
    """The suites that measure it, and with which options."""
    dim: int
    impl: str
    sharding: Sharding | None = None
    """How it mixes across ranks, set by :func:`flashmix.parallel.shard_sequence`."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "Config" in cls.__dict__:
            cls.op = cls.Config.op

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
    def forward(
        self,
        x: Tensor | Heads,
        mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Mix the tokens of ``x`` [B, N, D], or heads as :meth:`mix_heads` does.

        With ``cu_seqlens``, int32 [S + 1], and maybe ``max_seqlen``, the tokens are packed, [T, D].
        """

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

    def check_packed(
        self,
        x: Tensor | Heads | AttentionHeads,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
    ) -> Lengths:
        """The keywords of an op for packed tokens ``x`` [T, D], or heads [T, H, dh], once they fit.

        Raises:
            ArgumentError: they are not [T, D], or the offsets do not fit them.
            ImplementationError: the mixer's tokens are sharded across ranks.
        """
        self.check_all_tokens("packed tokens")
        where = type(self).__name__
        if isinstance(x, Tensor):
            _checks.check_floating(where, "x", x, "T, D")
            if x.shape[1] != self.dim:
                raise ArgumentError(
                    f"{where}: x must have width D = {self.dim}, got shape {list(x.shape)}"
                )
        tokens = x if isinstance(x, Tensor) else x.v
        offsets, longest = check_offsets(where, mask, cu_seqlens, max_seqlen, tokens)
        return {"cu_seqlens": offsets, "max_seqlen": longest}

    def drop_projections(self) -> Self:
        """Delete the projections around the mixing, and return self; :meth:`mix_heads` is left."""
        return self

    def check(self, x: Tensor, mask: Tensor | None) -> None:
        """Raise ArgumentError unless ``x`` is [B, N, D] and ``mask`` fits it."""
        try:
            _checks.check_tokens(type(self).__name__, x, mask, self.dim)
        except ArgumentError as error:
            if self.sharding is not None:
                self.sharding.broadcast_error(error)
            raise

    def check_all_tokens(self, what: str) -> None:
        """Raise ImplementationError where ``what`` needs all tokens, and a rank has a slice."""
        if self.sharding is not None:
            raise self.sharding.all_tokens_error(what)


class WeighingMixer(Mixer):
    """A mixer whose call returns its weights too, where ``return_weights=True`` asks for them."""

    @overload
    def forward(
        self,
        x: Tensor | Heads,
        mask: Tensor | None = None,
        *,
        return_weights: Literal[False] = ...,
        cu_seqlens: Tensor | None = ...,
        max_seqlen: int | None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, return_weights: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        return_weights: bool,
        cu_seqlens: Tensor | None = ...,
        max_seqlen: int | None = ...,
    ) -> Tensor | tuple[Tensor, Tensor]: ...
    @abstractmethod
    def forward(
        self,
        x: Any,
        mask: Tensor | None = None,
        *,
        return_weights: bool = False,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Any:
        """Y [B, N, D], or (y, weights)."""

    if TYPE_CHECKING:
        __call__ = forward


class QKVMixer(WeighingMixer):
    """A mixer with q, k, v and output projections; subclasses say how heads mix."""

    reads = "qkv"
    pictures = frozenset({"weights"})
    num_heads: int
    num_kv_heads: int
    causal: bool
    grouped: ClassVar[bool] = True
    """Whether :meth:`mix` takes fewer heads of k and v than of q; else they are repeated for it."""

    def __init__(self, config: QKVConfig) -> None:
        super().__init__(config)
        dim = self.dim
        self.head_dim = dim // self.num_heads
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv = nn.Linear(dim, width, bias=config.bias)
        self.out = nn.Linear(dim, dim, bias=config.bias)

    def forward(
        self,
        x: Tensor | Heads | AttentionHeads,
        mask: Tensor | None = None,
        *,
        return_weights: bool = False,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Any:
        """Mix the tokens of ``x``.

        Args:
            x: [B, N, D], floating; or :class:`Heads`, which are mixed alone.
            mask: bool [B, N], True = a real token.
            return_weights: also return the weights [B, H, N, N], computed by the reference; of
                padded tokens alone.
            cu_seqlens, max_seqlen: of packed tokens ``x`` [T, D] or heads [T, H, dh].

        Returns:
            y [B, N, D] or packed [T, D], or (y, weights).

        Raises:
            ArgumentError: ``x`` or ``mask`` does not fit.
            ImplementationError: ``impl`` cannot run here, or never holds the weights; or ``qkv`` is
                sharded in another way than by :func:`flashmix.parallel.tp_plan`.
        """
        if cu_seqlens is not None or max_seqlen is not None:
            lengths = self.check_packed(x, mask, cu_seqlens, max_seqlen)
            if return_weights:
                raise no_packed_weights(type(self).__name__)
            if isinstance(x, Heads):
                return merge_heads(self.mix_whole(*self._repeated(*x), None, **lengths))
            if isinstance(x, AttentionHeads):
                return merge_heads(attend_packed(self, x, **lengths))
            qkv = self._repeated(*self.heads(x, None))
            return self.out(merge_heads(self.mix_whole(*qkv, None, **lengths)))
        if isinstance(x, Heads):
            return merge_heads(self.mix(*self._repeated(*x), mask))
        if isinstance(x, AttentionHeads):
            self.check_all_tokens("attention by a model's own formula")
            return x.attend(self, x.q, x.k, x.v, mask)
        self.check(x, mask)
        q, k, v = self.heads(x, mask)
        weights = None
        if return_weights:
            self.check_all_tokens("weights")
            if q.shape[1] != self.num_heads:
                raise self._no_weights()
            y, weights = self.mix_with_weights(q, *repeat_heads(q, k, v), mask)
        else:
            y = self.mix(*self._repeated(q, k, v), mask)
        y = zero_padding(self.out(merge_heads(y)), mask)
        return y if weights is None else (y, weights)

    def heads(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of ``x`` by head, [B, H, N, dh], or of packed tokens [T, H, dh].

        k and v have ``num_kv_heads`` of them. Under tensor parallelism, those of this rank.

        Raises:
            ImplementationError: ``qkv`` is sharded in another way than by
                :func:`flashmix.parallel.tp_plan`.
        """
        # NaN at padding would reach the projections' gradients through 0 * NaN.
        qkv = self.qkv(zero_padding(x, mask))
        counts = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        width = sum(counts) * self.head_dim
        if qkv.shape[-1] != width:
            self._check_shard(qkv, width)
            counts = [count * qkv.shape[-1] // width for count in counts]
        q, k, v = split_heads(qkv, self.head_dim, counts)
        return q, k, v

    def _repeated(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as :meth:`mix` takes them."""
        return (q, k, v) if self.grouped else (q, *repeat_heads(q, k, v))

    def _check_shard(self, qkv: Tensor, width: int) -> None:
        """Raise ImplementationError unless ``qkv`` holds q, k and v of some of the heads."""
        if not _sharded_by_heads(self):
            raise ImplementationError(
                f"{type(self).__name__}: qkv gave {qkv.shape[-1]} channels, not the {width} of its "
                "q, k and v; a shard of its columns does not hold q, k and v of the same heads. "
                "For tensor parallelism take the plan that flashmix.parallel.tp_plan(model) gives"
            )

    def _no_weights(self) -> ImplementationError:
        return ImplementationError(
            f"{type(self).__name__}: under tensor parallelism a rank holds the weights of its own "
            "heads alone; ask for them on one device"
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

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Mix heads, [B, H, N, dh], or this rank's slice; k and v may have fewer heads."""
        if self.sharding is not None:
            return self.sharding.mix(self, (q, *repeat_heads(q, k, v)), mask)
        return self.mix_whole(q, k, v, mask)

    @abstractmethod
    def mix_whole(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **lengths: Unpack[Lengths]
    ) -> Tensor:
        """Mix heads of whole sequences, [B, H, N, dh]; k and v may have fewer where ``grouped``.

        Of packed [T, H, dh], ``lengths`` are the op's cu_seqlens and max_seqlen.
        """

    @abstractmethod
    def mix_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mix heads and return the weights [B, H, N, N] too."""


def _sharded_by_heads(mixer: QKVMixer) -> bool:
    """Whether its ``qkv`` is there, and shared among ranks by :func:`flashmix.parallel.tp_plan`."""
    return getattr(getattr(mixer, "qkv", None), "sharded_by_heads", False)

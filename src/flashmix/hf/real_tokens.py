"""A batch's real tokens for the layers of a model, and their padding put back behind them.

No state is kept between calls: what layers must know hangs on the tensors that pass between them.
The mask that a model gives its layers knows which tokens are real (:func:`note`), and so do the
hidden states [1, T, D] that layers hand on. A layer that raises leaves nothing behind.

Shapes: B batch, N tokens of a padded sequence, T real tokens of the batch, D width.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ModelError
from flashmix.hf.attention import mixer_of
from flashmix.ops._packed import Lengths, places, scatter_rows

UNPADDING = "_flashmix_unpadding"
"""What a stack of layers calls the :class:`Unpadding` of it."""
_MASK, _HIDDEN = "_flashmix_mask", "_flashmix_hidden"
"""What of a tensor says which tokens are real: of a mask, and of hidden states without padding."""


class RealTokens:
    """Which tokens of a padded batch are real.

    Stands in the place of ``attention_mask`` where hidden states are [1, T, D], without padding.

    Args:
        mask: bool [B, N].
        lengths: real tokens of each sequence, int32 [B].
        counts: ``lengths`` on the host.
    """

    def __init__(self, mask: Tensor, lengths: Tensor, counts: list[int]) -> None:
        self.mask, self.counts, self.total = mask, counts, sum(counts)
        self._lengths = lengths
        self._taken: dict[int, tuple[Tensor, Tensor]] = {}

    @functools.cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        return places(self.mask, self._lengths, self.total, self.mask.device)

    def lengths(self, device: torch.device) -> Lengths:
        """What a mixer takes beside packed tokens on ``device``."""
        return {"cu_seqlens": self._places[0].to(device), "max_seqlen": max(self.counts)}

    def take(self, x: Tensor) -> Tensor:
        """The real tokens of ``x`` [B, N, ...], or of [1, N, ...] for each sequence: [1, T, ...].

        Raises:
            ModelError: ``x`` has another shape.
        """
        batch, n = self.mask.shape
        if x.shape[:2] not in ((batch, n), (1, n)):
            raise ModelError(
                f"a layer without padding gets a tensor {list(x.shape)}, of which no tokens can be "
                f"taken; expected [{batch}, {n}, ...] or [1, {n}, ...]. Swap with unpad=False"
            )
        rows = self._places[1].to(x.device)
        return x.flatten(0, 1).index_select(0, rows if len(x) == batch else rows % n)[None]

    def take_once(self, x: Tensor) -> Tensor:
        """:meth:`take`, kept for the layers that follow."""
        if id(x) not in self._taken:
            self._taken[id(x)] = x, self.take(x)
        return self._taken[id(x)][1]

    def put_back(self, x: Tensor) -> Tensor:
        """``x`` [1, T, ...] as [B, N, ...] with zeros at padding."""
        batch, n = self.mask.shape
        return scatter_rows(x[0], self._places[1].to(x.device), (batch, n))


def note_mask(mask: Tensor, real: RealTokens) -> None:
    """Note on a mask, as a model's layers get it, which tokens are real."""
    setattr(mask, _MASK, real)


def real_tokens_of(mask: Any) -> RealTokens | None:
    """What :func:`note_mask` noted; nothing of what is no such mask."""
    return _noted(mask, _MASK)


def _noted(x: Any, name: str) -> RealTokens | None:
    """What was noted on a tensor; nothing on what was computed from it."""
    return getattr(x, name, None) if isinstance(x, Tensor) else None


class Unpadding:
    """The hooks of a stack of layers: padding is removed before the first, put back after the last.

    Args:
        attentions: the attention modules within the layers, whose mixers may be sharded.
    """

    def __init__(self, attentions: Sequence[nn.Module]) -> None:
        self.on = True
        self._attentions = attentions

    def install(self, stack: nn.ModuleList, owners: Sequence[nn.Module]) -> None:
        """Hook the layers of ``stack``, and the modules around it, ``owners``, inner ones first."""
        for layer in stack:
            hooks = _Layer(self, layer, last=layer is stack[-1])
            layer.register_forward_pre_hook(hooks.before, with_kwargs=True)
            layer.register_forward_hook(hooks.after, with_kwargs=True)
        setattr(stack, UNPADDING, self)
        for owner in owners:
            owner.register_forward_hook(_put_back_outputs)

    def may_run(self) -> bool:
        """Whether padding is to be removed, and no layer's tokens are sharded across ranks."""
        mixers = map(mixer_of, self._attentions)
        return self.on and all(one is None or one.sharding is None for one in mixers)


def unpads(model: nn.Module) -> bool:
    """Whether a swap removes the padding of ``model``, or of a part of it."""
    found = (getattr(module, UNPADDING, None) for module in model.modules())
    return any(one is not None and one.on for one in found)


class _Layer:
    """The hooks of one layer; objects, so that they are copied and pickled with their model."""

    def __init__(self, unpadding: Unpadding, layer: nn.Module, last: bool) -> None:
        self._unpadding, self._last = unpadding, last
        self._first = next(iter(inspect.signature(layer.forward).parameters))

    def _hidden(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return args[0] if args else options.get(self._first)

    def before(
        self, layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Give the layer real tokens alone."""
        if torch.compiler.is_compiling():
            return None
        hidden = self._hidden(args, options)
        real = _noted(hidden, _HIDDEN)
        if real is not None:
            tokens = hidden
        else:
            noted = map(real_tokens_of, (*args, *options.values()))
            real = next((one for one in noted if one is not None), None)
            if real is None or not self._unpadding.may_run():
                return None
            if hidden.shape[:2] != real.mask.shape:
                raise ModelError(
                    f"{type(layer).__name__} without padding gets hidden states "
                    f"{list(hidden.shape)} that are not what the layer before gave, with a mask "
                    f"{list(real.mask.shape)}; swap with unpad=False (and checkpoint gradients "
                    "with use_reentrant=False)"
                )
            tokens = real.take(hidden)
            setattr(tokens, _HIDDEN, real)

        def given(value: Any) -> Any:
            return tokens if value is hidden else _beside(value, real)

        return tuple(map(given, args)), {name: given(value) for name, value in options.items()}

    def after(
        self, layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> Any:
        """Note on what the layer gives that it has no padding, and put it back after the last."""
        real = _noted(self._hidden(args, options), _HIDDEN)
        if real is None or torch.compiler.is_compiling():
            return None
        tokens, *rest = (output,) if isinstance(output, Tensor) else output
        if tokens.shape[:2] != (1, real.total) or any(isinstance(one, Tensor) for one in rest):
            raise ModelError(
                f"{type(layer).__name__} without padding gives more than hidden states "
                f"[1, {real.total}, ...]; swap with unpad=False"
            )
        setattr(tokens, _HIDDEN, real)
        if not self._last:
            return None
        padded = real.put_back(tokens)
        return padded if isinstance(output, Tensor) else (padded, *rest)


def _beside(value: Any, real: RealTokens) -> Any:
    """What a layer gets beside its hidden states, of real tokens alone; ``real`` for its mask."""
    if isinstance(value, Tensor):
        other = real_tokens_of(value)
        if other is None:
            return real.take_once(value) if value.dim() else value
        if other.counts != real.counts:
            raise ModelError(
                "a layer without padding gets a mask of other tokens than the first layer; swap "
                "with unpad=False"
            )
        return real
    if type(value) in (tuple, list):
        return type(value)(_beside(one, real) for one in value)
    if type(value) is dict:
        return {name: _beside(one, real) for name, one in value.items()}
    return value


def _put_back_outputs(module: nn.Module, args: Any, output: Any) -> Any:
    """A model's output with padding put back in what its layers gave, such as all hidden states."""
    return None if torch.compiler.is_compiling() else _put_back(output)


def _put_back(value: Any) -> Any:
    """``value`` with padding in the hidden states within; None where it stays as it is."""
    if isinstance(value, Tensor):
        real = _noted(value, _HIDDEN)
        return None if real is None else real.put_back(value)
    if isinstance(value, dict):
        for name, inner in value.items():
            if (padded := _put_back(inner)) is not None:
                value[name] = padded
    elif type(value) in (tuple, list):
        padded = [_put_back(inner) for inner in value]
        if any(one is not None for one in padded):
            both = zip(padded, value, strict=True)
            return type(value)(old if new is None else new for new, old in both)
    return None

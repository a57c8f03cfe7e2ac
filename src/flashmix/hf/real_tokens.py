"""A batch's real tokens for the layers of a model, and their padding put back behind them.

No state is kept between calls: what layers must know hangs on the tensors that pass between them.
The mask that a model gives its layers knows which tokens are real (:func:`note`), and so do the
hidden states [1, T, D] that layers hand on. A layer that raises leaves nothing behind.

Shapes: B batch, N tokens of a padded sequence, T real tokens of the batch, D width.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ModelError
from flashmix.hf.attention import mixer_of
from flashmix.ops._packed import Lengths, lengths_readable, places, scatter_rows

UNPADDING = "_flashmix_unpadding"
"""What a stack of layers calls the :class:`Unpadding` of it."""
_MASK, _HIDDEN = "_flashmix_mask", "_flashmix_hidden"
"""What of a tensor says which tokens are real: of a mask, and of hidden states without padding."""
PADDED = -1e4 + 1
"""Below it an additive mask means padding; older models add -10,000."""


class RealTokens:
    """Which tokens of a padded batch are real.

    Stands in the place of ``attention_mask`` where hidden states are [1, T, D], without padding.

    Args:
        mask: bool [B, N].
        lengths: real tokens of each sequence, int32 [B].
        counts: ``lengths`` on the host.
        source: the mask [B, 1, 1, N] of a model's own that they were read from.
    """

    def __init__(
        self, mask: Tensor, lengths: Tensor, counts: list[int], source: Tensor | None = None
    ) -> None:
        self.mask, self.counts, self.total = mask, counts, sum(counts)
        self.source = source
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
    """Note on a mask that is made for one call of a model which tokens are real."""
    setattr(mask, _MASK, real)


def find_real_tokens(values: Iterable[Any]) -> RealTokens | None:
    """By the padding mask among the arguments of a layer; None where nothing can be removed."""
    masks = [value for value in values if isinstance(value, Tensor) and value.dim() == 4]
    noted = (_noted(mask, _MASK) for mask in masks)
    if (found := next((one for one in noted if one is not None), None)) is not None:
        return found
    if not masks or not lengths_readable():
        return None
    return next((one for one in map(_read_mask, masks) if one is not None), None)


def real_by_sum(row: Tensor) -> tuple[Tensor, Tensor]:
    """Real tokens by what is added to scores, [B, N], and whether it says nothing but that."""
    real = row == 0
    return real, (real | (row < PADDED)).all()


def _read_mask(mask: Tensor) -> RealTokens | None:
    """Real tokens by a model's own mask [B, 1, 1, N], bool or added to scores, in one wait.

    Nothing is noted on it, since a caller may hold it, and change it, between calls.
    """
    if mask.shape[1:3] != (1, 1):
        return None
    row, plain = mask[:, 0, 0], mask.new_ones((), dtype=torch.bool)
    if row.is_floating_point():
        row, plain = real_by_sum(row)
    elif row.dtype != torch.bool:
        return None
    lengths = row.sum(1, dtype=torch.int32)
    *counts, whole = torch.cat((lengths, plain[None].int())).tolist()
    return RealTokens(row, lengths, counts, mask) if whole and any(counts) else None


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

    def whole(self) -> bool:
        """Whether each layer has all tokens, which may be sharded across ranks."""
        mixers = map(mixer_of, self._attentions)
        return all(one is None or one.sharding is None for one in mixers)


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
            if not self._unpadding.on:
                return None
            real = find_real_tokens((*args, *options.values()))
            if real is None or not self._unpadding.whole():
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
        other = real if value is real.source else _noted(value, _MASK)
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

"""The mask that a model's layers get, and what of it a mixer takes: never less than it says.

Shapes: B batch, H heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from flashmix.errors import ModelError
from flashmix.hf.real_tokens import RealTokens, note_mask, real_by_sum
from flashmix.ops._packed import lengths_readable

Reach = tuple[int | None, int | None]
"""How many tokens before and after itself a token sees; None for all of them."""
FULL: Reach = (None, None)
CAUSAL: Reach = (None, 0)


Sees = Callable[[int, int], bool]
"""Whether a query's index sees a key's."""


def mask_reach(mask_function: Any) -> Reach | str:
    """What a mask function of transformers lets a token see, or its name where that is no reach.

    It must be put together by ``and_masks`` and ``or_masks`` from functions of transformers that
    close over integers alone; others may depend on the batch.
    """
    name = str(getattr(mask_function, "__qualname__", mask_function))
    found = _predicate(mask_function)
    if found is None:
        return name
    key, sees = found
    if key not in _measured:
        _measured[key] = _measure(sees, max(_integers(key), default=0) + 2)
    return _measured[key] or name


_measured: dict[Any, Reach | None] = {}
"""Reaches by the code and the integers of their functions, which models make anew in each call."""


def _predicate(mask_function: Any) -> tuple[Any, Sees] | None:
    """What a mask function depends on, and the function of two indices; None where it is more."""
    from transformers import masking_utils

    code = getattr(mask_function, "__code__", None)
    values = [cell.cell_contents for cell in getattr(mask_function, "__closure__", None) or ()]
    for combine, every in ((masking_utils.and_masks, all), (masking_utils.or_masks, any)):
        if code is combine(mask_function).__code__:
            return _combined(every, [_predicate(part) for part in values[0]])
    module = str(getattr(mask_function, "__module__", ""))
    if module.split(".")[0] != "transformers" or any(type(value) is not int for value in values):
        return None
    return (code, *values), lambda q, k: bool(mask_function(0, 0, q, k))


def _combined(every: Any, parts: list[tuple[Any, Sees] | None]) -> tuple[Any, Sees] | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    key = (every.__name__, *(part for part, _ in known))
    return key, lambda q, k: every(sees(q, k) for _, sees in known)


def _integers(key: Any) -> Iterator[int]:
    for part in key:
        if isinstance(part, tuple):
            yield from _integers(part)
        elif isinstance(part, int):
            yield part


def _measure(sees: Sees, far: int) -> Reach | None:
    """The reach of a mask in which all integers are below ``far``; None where it has none."""

    def reach(query: int, side: int) -> int | None:
        seen = [sees(query, query + side * distance) for distance in range(far + 1)]
        near = seen.index(False) if False in seen else None
        # A token sees itself, and none beyond the first one that it does not see.
        if near is None:
            return None
        return -1 if near == 0 or any(seen[near:]) else near - 1

    try:
        found = {(reach(q, -1), reach(q, 1)) for q in (far, far + 1, 2 * far + 1)}
    except Exception:
        return None  # a function of tensors alone
    before, after = found.pop()
    return None if found or -1 in (before, after) else (before, after)


def padding_mask(
    attention_mask: Tensor | None = None, mask_function: Any = None, **_: Any
) -> Tensor | None:
    """The mask of layers whose tokens all see each other: bool [B, 1, 1, N], or None.

    It is None where nothing is padded. It has the four axes of transformers' own masks, since other
    modules may ask for one as well.

    Raises:
        ModelError: the model wants another pattern than padding, for example a causal one.
    """
    from transformers.masking_utils import bidirectional_mask_function

    if mask_function is not bidirectional_mask_function:
        raise ModelError(
            "flashmix mixes encoders, whose tokens all see each other; this model asks for "
            f"another mask ({getattr(mask_function, '__qualname__', mask_function)})"
        )
    return _padding(attention_mask)


def layer_mask(
    attention_mask: Tensor | None = None,
    mask_function: Any = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> Tensor | None:
    """The mask of swapped layers: padding alone, as :func:`padding_mask` gives it.

    Which tokens see each other besides is each mixer's own, which has the layer's reach.

    Raises:
        ModelError: the model wants a pattern that is no reach to either side.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

    if mask_function not in (bidirectional_mask_function, causal_mask_function):
        # A compiler sees no code: windows and a model's own functions were measured at the swap.
        known = local_size is not None or use_vmap
        known = known if torch.compiler.is_compiling() else _is_reach(mask_function)
        if not known:
            raise ModelError(
                "mixers see all tokens, those before, or a window; this model asks for another "
                f"mask ({getattr(mask_function, '__qualname__', mask_function)})"
            )
    return _padding(attention_mask)


def _is_reach(mask_function: Any) -> bool:
    return not isinstance(mask_reach(mask_function), str)


def _padding(attention_mask: Tensor | None) -> Tensor | None:
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise _unfit("the model", attention_mask)
    mask = attention_mask.bool()
    view = mask[:, None, None, :]
    # What a trace or a graph keeps must hold for other masks; there the mask is passed as it is.
    if not lengths_readable():
        return view
    lengths = mask.sum(1, dtype=torch.int32)
    counts: list[int] = lengths.tolist()
    if min(counts, default=mask.shape[1]) == mask.shape[1]:
        return None
    if any(counts):
        note_mask(view, RealTokens(mask, lengths, counts))
    return view


def adds_to_scores(mask: Any) -> bool:
    """Whether a layer's mask holds a value for each pair of tokens, [B, 1 or H, N, N]."""
    return (
        isinstance(mask, Tensor)
        and mask.dim() == 4
        and mask.is_floating_point()
        and mask.shape[2] == mask.shape[3] > 1
    )


def tokens_mask(where: str, mask: Any) -> Tensor | None:
    """``mask`` of the layer ``where`` as bool [B, N].

    Bool [B, N] and [B, 1, 1, N] are taken as they are; a float mask [B, 1, 1, N] must be zero at
    real tokens and nearly minus infinity at padding, as transformers makes it.

    Raises:
        ModelError: it may say more than which tokens are real.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise ModelError(
            f"{where}: flashmix needs attention_mask [B, N]; the layer got a {type(mask).__name__}"
        )
    if mask.dim() == 2 and mask.dtype == torch.bool:
        return mask
    if mask.dim() == 4 and mask.shape[1:3] == (1, 1):
        row = mask[:, 0, 0]
        if row.dtype == torch.bool:
            return row
        if row.is_floating_point():
            real, plain = real_by_sum(row)
            if torch.compiler.is_compiling() or is_tracing():
                torch._assert_async(plain, "flashmix: attention_mask adds to scores")
            elif not plain:
                raise ModelError(
                    f"{where}: attention_mask {list(mask.shape)} adds values to scores, which "
                    "mixers do not take; pass [B, N] with 1 or True at real tokens"
                )
            return real
    raise _unfit(where, mask)


def _unfit(where: str, mask: Tensor) -> ModelError:
    return ModelError(
        f"{where}: flashmix needs attention_mask [B, N] with 1 or True at real tokens; "
        f"the layer got {list(mask.shape)} {mask.dtype}, which may also hold what is added to "
        "scores, such as relative positions"
    )

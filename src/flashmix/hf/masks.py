"""The mask that a model's layers get, and what of it a mixer takes: never less than it says.

Shapes: B batch, H heads, N tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from flashmix.errors import ModelError
from flashmix.hf.real_tokens import RealTokens, note_mask, real_by_sum
from flashmix.ops._packed import lengths_readable


def padding_mask(
    attention_mask: Tensor | None = None,
    mask_function: Any = None,
    q_length: Any = None,
    kv_length: Any = None,
    **_: Any,
) -> Tensor | None:
    """The mask that a model's layers get: bool [B, 1, 1, N], or None where nothing is padded.

    It has the four axes of transformers' own masks, since other modules may ask for one as well.

    Raises:
        ModelError: the model wants another pattern than padding, for example a causal one.
    """
    from transformers.masking_utils import bidirectional_mask_function

    if mask_function is not bidirectional_mask_function:
        raise ModelError(
            "flashmix mixes encoders, whose tokens all see each other; this model asks for "
            f"another mask ({getattr(mask_function, '__qualname__', mask_function)})"
        )
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

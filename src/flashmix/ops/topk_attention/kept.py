"""Top-k attention once the keys are chosen, as its derivatives see it: the choice has none.

Shapes: B batch, H heads of queries, K heads of keys and values, N tokens, dh width of a head, k
kept keys.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flashmix.ops._dense import repeat_heads
from flashmix.ops._derivatives import vjp
from flashmix.ops._precision import full_precision, transform_dtype


def attend_kept(q: Tensor, k: Tensor, v: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Attention of each query to the keys ``index`` [B, H, N, k], [B, H, N, dh].

    ``weights`` [B, H, N, k], those that a kernel found, are zero where a query has fewer keys.
    """
    k, v = repeat_heads(q, k, v)
    wide = transform_dtype(q.dtype)
    places = index.clamp(min=0).long().flatten(2)[..., None]
    # Nothing at padding, NaN included, reaches a product.
    hidden = (weights == 0)[..., None]
    empty = hidden.all(-2)

    def chosen(x: Tensor) -> Tensor:
        rows = x.to(wide).gather(2, places.expand(-1, -1, -1, x.shape[3]))
        return rows.unflatten(2, index.shape[2:]).masked_fill(hidden, 0)

    with full_precision(q.device):
        scaled = q.to(wide).masked_fill(empty, 0) * q.shape[3] ** -0.5
        scores = (chosen(k) @ scaled[..., None]).masked_fill(hidden, float("-inf"))
        share = scores.masked_fill(empty[..., None], 0).softmax(-2)
        y = (share.transpose(-2, -1) @ chosen(v)).squeeze(-2)
    return y.masked_fill(empty, 0).to(q.dtype)


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor, weights: Tensor) -> Any:
    """Those of q, k and v, that can be differentiated again."""
    return vjp(lambda q, k, v: attend_kept(q, k, v, index, weights), (q, k, v), grad)

"""Launching the kernels of exact top-k attention.

Shapes: B batch, H heads of queries, K heads of keys and values, N tokens, dh width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from flashmix.ops._triton.heads import empty_bnhd, ensure_contiguous_last_dim, packing, strides
from flashmix.ops._triton.inverted_index import inverted_index
from flashmix.ops._triton.launch import cdiv, next_power_of_2, padded, precision
from flashmix.ops._triton.tuning import LaunchConfig, launch_config
from flashmix.ops.topk_attention.triton.kernels_gather import (
    key_grad_kernel,
    query_grad_kernel,
)
from flashmix.ops.topk_attention.triton.kernels_keep import keep_kernel
from flashmix.ops.topk_attention.triton.kernels_search import search_kernel
from flashmix.ops.topk_attention.triton.kernels_select import bound_kernel, collect_kernel

_MOST_GROUPS, _COLUMNS = 256, 128
_TILE, _GATHERED = 2048, 16
"""Elements of a tile of gathered rows that one warp holds, and most rows of it."""
_EASY_TILE, _LARGEST_TILE = 1 << 15, 1 << 17
"""Bytes of a tile of keys that two stages hold with ease, and of one that just fits."""


@dataclass(frozen=True, kw_only=True)
class Config(LaunchConfig):
    """Tiles and warps of the kernels, and the depth of their pipelines.

    The bound's tiles hold ``queries``, the second pass's ``collect_queries`` by ``collect_keys``;
    ``keep_rows`` queries read ``keep_step`` of their keys at a time.
    """

    op = "topk_attention"
    sizes = ("head_dim", "topk")

    queries: int = 128
    warps: int = 8
    stages: int = 3
    collect_queries: int = 128
    collect_keys: int = 128
    collect_warps: int = 8
    collect_stages: int = 3
    keep_rows: int = 4
    keep_step: int = 16
    keep_warps: int = 4

    @classmethod
    def fitting(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> Self:
        """Rows of more bytes take shorter pipelines."""
        if cls.tunable(sizes, dtype):
            return cls()
        row = padded(sizes["head_dim"]) * dtype.itemsize
        queries, stages = (32 if row > 512 else 64), (1 if row > 256 else 2)
        return cls(
            queries=queries,
            stages=stages,
            collect_queries=queries,
            collect_keys=64,
            collect_stages=stages,
        )

    @classmethod
    def tunable(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> bool:
        """Heads of up to 64."""
        return dtype != torch.float32 and padded(sizes["head_dim"]) * dtype.itemsize <= 128


@functools.cache
def config(width: int, topk: int, dtype: torch.dtype) -> Config:
    """The launch parameters of heads of that width."""
    return launch_config(Config, {"head_dim": width, "topk": topk}, dtype)


def groups(width: int, topk: int, dtype: torch.dtype) -> int:
    """Groups of keys, which are the keys of a tile; 4 k of them leave few candidates beyond k."""
    row = padded(width) * dtype.itemsize
    needed = next_power_of_2(cdiv(4 * topk, 3))
    wanted = max(needed, min(next_power_of_2(4 * topk), _EASY_TILE // row))
    return max(64, min(wanted, _MOST_GROUPS, _LARGEST_TILE // row))


def slots(topk: int) -> int:
    """Candidates of a query that there is room for."""
    return max(64, next_power_of_2(2 * topk))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    topk: int,
    causal: bool,
    how: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the kept keys (int32, -1 where fewer) and weights (float32) [B, H, N, k].

    The output is token-major.
    """
    batch, heads, n, width = q.shape
    q, k, v = (x.contiguous() for x in (q, k, v))
    y = empty_bnhd(q)
    index = torch.empty((*q.shape[:3], topk), dtype=torch.int32, device=q.device)
    weights = torch.empty(index.shape, dtype=torch.float32, device=q.device)
    if not y.numel():
        return y, index, weights
    how = how or config(width, topk, q.dtype)
    tile = groups(width, topk, q.dtype)
    # Beyond three keys for four groups the bound leaves more candidates than there is room for.
    bounded = 4 * topk <= 3 * tile
    room = slots(topk) if bounded else max(64, next_power_of_2(topk))
    real = packing(mask)
    rows = batch * heads * n
    words = torch.empty((rows, room), dtype=torch.int64, device=q.device)
    counts = torch.empty(rows, dtype=torch.int32, device=q.device)
    bounds = torch.empty(rows, dtype=torch.float32, device=q.device)
    sizes = (heads, heads // k.shape[1], n, topk)
    options: dict[str, Any] = {
        "D": width,
        "DP": padded(width),
        "CAUSAL": causal,
        "PACKED": real.packed,
        "PRECISION": precision(q.dtype),
    }

    def tiled(queries: int, keys: int) -> tuple[tuple[int], dict[str, Any]]:
        queries = min(queries, padded(n))
        grid = (cdiv(n, queries) * batch * heads,)
        return grid, {"QUERIES": queries, "KEYS": keys, **options}

    args = (bounds, words, counts, real.order, real.lengths, *sizes)
    if bounded:
        grid, tiles = tiled(how.queries, min(tile, _COLUMNS))
        bound_kernel[grid](
            q,
            k,
            bounds,
            real.order,
            real.lengths,
            *sizes,
            PARTS=cdiv(tile, _COLUMNS),
            num_warps=how.warps,
            num_stages=how.stages,
            **tiles,
        )
        grid, tiles = tiled(how.collect_queries, how.collect_keys)
        collect_kernel[grid](
            q,
            k,
            *args,
            C=room,
            num_warps=how.collect_warps,
            num_stages=how.collect_stages,
            **tiles,
        )
    # Mostly it does nothing, so it is the small programs that matter.
    grid, tiles = tiled(min(how.collect_queries, 64), 64)
    search_kernel[grid](
        q,
        k,
        *args,
        C=room,
        BOUNDED=bounded,
        num_warps=4 if padded(width) * q.element_size() <= 256 else 8,
        num_stages=1,
        **tiles,
    )
    together, step, warps = _kept(how, width, room)
    keep_kernel[(cdiv(n, together) * batch * heads,)](
        q,
        k,
        v,
        words,
        counts,
        torch.empty((rows, room), dtype=torch.int32, device=q.device),
        torch.empty((rows, room), dtype=torch.float32, device=q.device),
        real.order,
        index,
        weights,
        y,
        *strides(y),
        width**-0.5,
        *sizes,
        D=width,
        DP=padded(width),
        C=room,
        ROWS=together,
        STEP=step,
        PACKED=real.packed,
        num_warps=warps,
    )
    return y, index, weights


def _kept(how: Config, width: int, room: int) -> tuple[int, int, int]:
    """Queries of a program of the last kernel, keys it reads at a time, and its warps.

    They are those of ``how`` where a thread then holds no more than 64 elements of a tile.
    """
    warps = max(how.keep_warps, min(8, room // 1024))
    rows = max(1, min(how.keep_rows, warps * 512 // room))
    step = max(1, min(how.keep_step, warps * 2048 // (rows * padded(width))))
    return rows, step, warps


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v, token-major."""
    batch, heads, n, width = q.shape
    topk = index.shape[-1]
    grad, q, k, v, y = ensure_contiguous_last_dim(grad, q, k, v, y)
    index, weights = index.contiguous(), weights.contiguous()
    grads = grad_q, grad_k, grad_v = empty_bnhd(q), empty_bnhd(k), empty_bnhd(v)
    if not y.numel():
        return grads
    group = heads // k.shape[1]
    slopes = torch.empty_like(weights)
    # One query or key for a warp: many small programs hide the latency of gathering.
    at_a_time = max(1, min(_GATHERED, _TILE // padded(width)))
    query_grad_kernel[(batch * heads * n,)](
        grad,
        k,
        v,
        y,
        index,
        weights,
        grad_q,
        slopes,
        *strides(grad, k, v, y, grad_q),
        width**-0.5,
        heads,
        group,
        n,
        topk,
        D=width,
        DP=padded(width),
        ROWS=1,
        KEPT=min(at_a_time, next_power_of_2(topk)),
        num_warps=1,
    )
    pairs, offsets = inverted_index(index, n, group)
    key_grad_kernel[(batch * k.shape[1] * n,)](
        q,
        grad,
        weights,
        slopes,
        pairs,
        offsets,
        grad_k,
        grad_v,
        *strides(q, grad, grad_k, grad_v),
        heads,
        group,
        n,
        topk,
        D=width,
        DP=padded(width),
        PAIRS=at_a_time,
        num_warps=1,
    )
    return grads

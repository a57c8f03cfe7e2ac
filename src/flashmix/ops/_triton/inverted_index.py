"""Which rows chose each target: the inverse of a table of indices, in a fixed order.

Sums over it have one owner and one order each, so no atomic addition decides their bits. It is
one sort of PyTorch's and never waits for the host.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverted_index(index: Tensor, targets: int, group: int) -> tuple[Tensor, Tensor]:
    """The places of ``index`` by what they hold.

    Args:
        index: int32 [B, H, R, k], values below ``targets``; negative ones count for nothing.
        targets: of each key head.
        group: query heads that share a key head.

    Returns:
        Positions in the flattened ``index``, int64, sorted by key head and target, then position;
        and where those of each begin, int64 [B * H / group * targets + 1].
    """
    batch, heads = index.shape[:2]
    count = batch * (heads // group) * targets
    dtype = torch.int32 if count < torch.iinfo(torch.int32).max else torch.int64
    own = torch.arange(batch * heads, device=index.device, dtype=dtype) // group
    keys = index.to(dtype) + (own * targets).view(batch, heads, 1, 1)
    keys = torch.where(index < 0, count, keys).flatten()
    ordered, places = torch.sort(keys, stable=True)
    edges = torch.arange(count + 1, device=index.device, dtype=dtype)
    return places, torch.searchsorted(ordered, edges)

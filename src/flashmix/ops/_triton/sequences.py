"""Sequences of any lengths in one launch: how the kernels of ragged batches find their tokens.

Tokens of S sequences are given in one of three ways, and nothing of them is copied:

- padded, [S, N, ...] with a mask: ``order`` lists the positions of each sequence's tokens, real
  ones first, ``lengths`` counts those, and ``offsets`` adds them up;
- packed, [T, ...] with ``offsets`` (``cu_seqlens``): sequence s is the rows offsets[s] to
  offsets[s + 1];
- plain, [S, N, ...]: every sequence has all N.

The host reads none of these tensors, so a call is issued without waiting, and a CUDA graph that
holds it can be replayed with other lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashmix.ops._triton.kernels_sequences import count_kernel, order_kernel
from flashmix.ops._triton.launch import next_power_of_2

_MOST_AT_A_TIME = 2048


@dataclass(frozen=True)
class Sequences:
    """Where the tokens of S sequences are.

    Attributes:
        count: S.
        longest: no sequence is longer; N of a padded batch, T of packed tokens.
        order: int32 [S, N], see above; None where nothing is padding.
        lengths: int32 [S], with ``order``.
        offsets: int32 [S + 1], the real tokens before each sequence; None where all have N.
    """

    count: int
    longest: int
    order: Tensor | None = None
    lengths: Tensor | None = None
    offsets: Tensor | None = None

    @property
    def packed(self) -> bool:
        """Whether tokens are [T, ...]."""
        return self.offsets is not None and self.order is None

    def tiles(self, tokens: int) -> int:
        """Tiles of a sequence of ``longest`` tokens, one more than ``tokens`` of them fill.

        The tile more is that of middle rows: a folded sequence has L // 2 + 1 of them.
        """
        return self.longest // tokens + 1

    def programs(self, tokens: int) -> int:
        """Programs that hold all tiles of ``tokens`` tokens of all sequences."""
        if self.packed:
            return self.longest // tokens + self.count
        return self.count * self.tiles(tokens)

    def folded_rows(self) -> int:
        """Rows that hold the L // 2 + 1 folded rows of each sequence."""
        if self.offsets is None:
            return self.count * (self.longest // 2 + 1)
        most = self.longest if self.packed else self.count * self.longest
        return most // 2 + self.count


def sequences(x: Tensor, mask: Tensor | None, offsets: Tensor | None) -> Sequences:
    """Where the tokens of ``x`` are.

    Args:
        x: [S, N, ...], or packed [T, ...].
        mask: bool [S, N], True = a real token; None where nothing is padding.
        offsets: int32 [S + 1] of packed tokens, else None.
    """
    if offsets is not None:
        return Sequences(offsets.shape[0] - 1, x.shape[0], offsets=offsets.contiguous())
    count, longest = x.shape[:2]
    if mask is None:
        return Sequences(count, longest)
    order = torch.empty((count, longest), dtype=torch.int32, device=mask.device)
    lengths = torch.empty((count,), dtype=torch.int32, device=mask.device)
    offsets = torch.empty((count + 1,), dtype=torch.int32, device=mask.device)
    if count:
        chunk = min(_MOST_AT_A_TIME, next_power_of_2(longest))
        bits, warps = mask.view(torch.uint8), 4 if chunk <= 1024 else 8
        count_kernel[(count,)](bits, lengths, *mask.stride(), longest, CHUNK=chunk, num_warps=warps)
        order_kernel[(count,)](
            bits,
            lengths,
            order,
            offsets,
            *mask.stride(),
            longest,
            CHUNK=chunk,
            SEQUENCES=128,
            num_warps=warps,
        )
    return Sequences(count, longest, order, lengths, offsets)

"""How the tokens of one call are distributed across the ranks.

Shapes: B batch, N tokens of all ranks, n those of this rank, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashmix.parallel.comm.collectives import Axis
from flashmix.parallel.comm.ranks import Ranks, offsets_of

DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)

METADATA = ("batch", "tokens", "width", "dtype", "requires_grad", "masked", "mixer")
"""What the ranks exchange before a call; all but tokens and masked must be equal on all ranks."""
MAY_DIFFER = ("tokens", "masked")


@dataclass(frozen=True)
class Layout:
    """The tokens that each rank holds, and the padding mask of all of them.

    Attributes:
        ranks: the ranks.
        counts: tokens n of each rank; slices follow each other in the order of the ranks.
        mask: of all tokens, bool [B, N], True = a real token; None where all are real.
    """

    ranks: Ranks
    counts: tuple[int, ...]
    mask: Tensor | None

    @property
    def total(self) -> int:
        """Tokens N of all ranks."""
        return sum(self.counts)

    def slice_of(self, rank: int) -> slice:
        """The tokens of ``rank`` among all."""
        start = offsets_of(self.counts)[rank]
        return slice(start, start + self.counts[rank])

    @property
    def own(self) -> slice:
        """The tokens of this rank among all."""
        return self.slice_of(self.ranks.rank)

    def mask_of(self, rank: int) -> Tensor | None:
        """The mask of the tokens of ``rank``, bool [B, n]."""
        return None if self.mask is None else self.mask[:, self.slice_of(rank)]

    @property
    def own_mask(self) -> Tensor | None:
        """The mask of this rank's tokens, bool [B, n]."""
        return self.mask_of(self.ranks.rank)

    def tokens(self, dim: int) -> Axis:
        """The axis of a tensor whose dimension ``dim`` holds the tokens."""
        return dim, self.counts


def call_metadata(x: Tensor, mask: Tensor | None, tokens_dim: int, mixer: int) -> dict[str, int]:
    """The metadata of a call that this rank sends to the others.

    Args:
        x: this rank's tokens, [B, n, D] or by head [B, H, n, dh].
        mask: bool [B, n], or None.
        tokens_dim: the dimension of ``x`` that holds the tokens.
        mixer: a hash of the mixer's name and options.
    """
    count = x.shape[tokens_dim]
    values = (
        x.shape[0],
        count,
        x[:1].numel() // count,
        DTYPES.index(x.dtype),
        int(x.requires_grad and torch.is_grad_enabled()),
        int(mask is not None),
        mixer,
    )
    return dict(zip(METADATA, values, strict=True))


def gather_layout(
    where: str, metadata: dict[str, int], x: Tensor, mask: Tensor | None, ranks: Ranks
) -> Layout:
    """Check that the ranks' calls are consistent, and gather their token counts and masks.

    Args:
        where: the mixer's name, for messages.
        metadata: :func:`call_metadata` of this rank's tokens and mask.
        x: this rank's tokens; masks are exchanged through their device.
        mask: bool [B, n], or None; some ranks may have a mask and others none.
        ranks: the ranks.

    Raises:
        ParallelError: on every rank, where the calls are not consistent.
    """
    rows = ranks.check_consistent(where, metadata, MAY_DIFFER, labels={"dtype": DTYPES})
    counts = tuple(row[METADATA.index("tokens")] for row in rows)
    whole = None
    if any(row[METADATA.index("masked")] for row in rows):
        batch, count = metadata["batch"], metadata["tokens"]
        own = x.new_ones(batch, count, dtype=torch.bool) if mask is None else mask
        parts = ranks.all_to_all(
            [own.to(torch.uint8)] * ranks.size, [batch * count for count in counts]
        )
        masks = [part.view(batch, n) for part, n in zip(parts, counts, strict=True)]
        whole = torch.cat(masks, 1).bool()
    return Layout(ranks, counts, whole)

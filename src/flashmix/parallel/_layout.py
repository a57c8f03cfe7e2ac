"""How the tokens of one call lie over the ranks.

Shapes: B batch, N tokens of all ranks, n those of this rank, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashmix.parallel._collectives import Axis
from flashmix.parallel._ranks import Ranks, starts

DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)

FACTS = ("batch", "tokens", "width", "dtype", "requires_grad", "masked", "mixer")
"""What the ranks tell each other before a call; all but tokens and masked must be the same."""


@dataclass(frozen=True)
class Layout:
    """Which tokens each rank holds, and the padding among all of them.

    Attributes:
        counts: tokens n of each rank; they lie end to end in the order of the ranks.
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
        start = starts(self.counts)[rank]
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
        """The axis along which tokens stand at ``dim``."""
        return dim, self.counts


def facts_of(x: Tensor, mask: Tensor | None, tokens_dim: int, mixer: int) -> dict[str, int]:
    """What this rank tells the others of a call.

    Args:
        x: its tokens, [B, n, D] or by head [B, H, n, dh].
        mask: bool [B, n], or None.
        tokens_dim: where the tokens of ``x`` stand.
        mixer: a number that stands for the mixer and its options.
    """
    count = x.shape[tokens_dim]
    facts = (
        x.shape[0],
        count,
        x[:1].numel() // count,
        DTYPES.index(x.dtype),
        int(x.requires_grad and torch.is_grad_enabled()),
        int(mask is not None),
        mixer,
    )
    return dict(zip(FACTS, facts, strict=True))


def agree(
    where: str, facts: dict[str, int], x: Tensor, mask: Tensor | None, ranks: Ranks
) -> Layout:
    """Make sure that the ranks fit together, and learn how the tokens lie.

    Args:
        where: the mixer's name, for messages.
        facts: as :func:`facts_of` this rank's tokens and mask.
        x: this rank's tokens, on the device that masks are exchanged by.
        mask: bool [B, n], or None; ranks with and without one may be mixed.

    Raises:
        ParallelError: on every rank, where they do not fit.
    """
    rows = ranks.agree(where, facts, free=("tokens", "masked"), labels={"dtype": DTYPES})
    counts = tuple(row[FACTS.index("tokens")] for row in rows)
    whole = None
    if any(row[FACTS.index("masked")] for row in rows):
        batch, count = facts["batch"], facts["tokens"]
        own = x.new_ones(batch, count, dtype=torch.bool) if mask is None else mask
        parts = ranks.all_to_all(
            [own.to(torch.uint8)] * ranks.size, [batch * count for count in counts]
        )
        masks = [part.view(batch, n) for part, n in zip(parts, counts, strict=True)]
        whole = torch.cat(masks, 1).bool()
    return Layout(ranks, counts, whole)

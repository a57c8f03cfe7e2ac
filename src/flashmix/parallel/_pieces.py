"""An exchange of tokens for columns and back, cut into pieces that travel while others compute.

While one piece of the columns is worked on, the next travels in and the one before travels back.
So an exchange holds a few pieces, not the whole tensor twice.

Shapes: B batch, n own tokens, N all tokens, c own columns of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from flashmix.parallel._layout import Layout
from flashmix.parallel._ranks import even_split, starts

PIECES = {"cpu": 64, "cuda": 2}
"""Most pieces of an exchange: more hold less memory, fewer cost fewer messages."""
MIN_PIECE_BYTES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""An exchange is cut no finer than this, of what a rank receives."""

Piece = list[slice]
"""The columns of each rank that travel together."""
Finish = Callable[[], Tensor]


def cut(shares: Sequence[int], column_bytes: int, device: str, fewest: int = 1) -> list[Piece]:
    """The columns in pieces, each with its part of every rank's share.

    Args:
        shares: columns of each rank, one rank's behind the other's.
        column_bytes: of one column of all tokens.
        device: "cpu" or "cuda".
        fewest: columns that a piece has at least, of each rank.
    """
    most = min(PIECES[device], column_bytes * max(shares) // MIN_PIECE_BYTES[device])
    count = max(1, min(most, min(shares) // fewest))
    parts = [even_split(share, count) for share in shares]
    return [
        [
            slice(first + starts(part)[k], first + starts(part)[k] + part[k])
            for first, part in zip(starts(shares), parts, strict=True)
        ]
        for k in range(count)
    ]


def through(
    pieces: Sequence[Piece],
    layout: Layout,
    sequence_elements: int,
    send: Callable[[int], Tensor],
    work: Callable[[int, Tensor], Tensor],
    receive: Callable[[int, Tensor], None],
) -> None:
    """Bring each piece of the columns to its ranks, work on it there, and bring it back.

    Args:
        pieces: as :func:`cut` gives them.
        layout: of the tokens.
        sequence_elements: elements of a token and column: B, or 2 B where they are complex.
        send: (number of the piece) to the own tokens of its columns, one rank's columns behind the
            other's, flat; each rank's token first: [n, B, c]. Asked for once, in their order.
        work: (number of the piece, all tokens of the own columns [N, B, c] flat) to what takes
            their place, as flat; it may be written into what was given.
        receive: (number of the piece, what came back, laid out as ``send`` gave it).
    """
    ranks = layout.ranks
    mine = layout.counts[ranks.rank] * sequence_elements

    def leave(k: int) -> Finish:
        return ranks.start_flat(send(k), dealt[k], kept[k])

    dealt = [[mine * (some.stop - some.start) for some in piece] for piece in pieces]
    own = [piece[ranks.rank] for piece in pieces]
    kept = [
        [count * sequence_elements * (some.stop - some.start) for count in layout.counts]
        for some in own
    ]
    coming = leave(0)
    returning: Finish | None = None
    for k in range(len(pieces)):
        here = coming()
        if k + 1 < len(pieces):
            coming = leave(k + 1)
        here = work(k, here)
        # It sets out before the one that came back is put in its place.
        back = ranks.start_flat(here, kept[k], dealt[k])
        if returning is not None:
            receive(k - 1, returning())
        returning = back
    assert returning is not None
    receive(len(pieces) - 1, returning())

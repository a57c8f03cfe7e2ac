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


def sizes(piece: Piece) -> list[int]:
    """Columns of each rank."""
    return [some.stop - some.start for some in piece]


Finish = Callable[[], Tensor]


def cut(
    shares: Sequence[int],
    column_bytes: int,
    device: str,
    fewest: int = 1,
    *,
    unit: int = 1,
    most: int | None = None,
) -> list[Piece]:
    """The columns in pieces, each with its part of every rank's share.

    Args:
        shares: columns of each rank, one rank's behind the other's.
        column_bytes: of one column of all tokens.
        device: "cpu" or "cuda".
        fewest: columns that a piece has at least, of each rank.
        unit: what the columns of all pieces but a rank's last are a multiple of.
        most: pieces, where that is not ``PIECES``.
    """
    pays = column_bytes * max(shares) // MIN_PIECE_BYTES[device]
    count = max(1, min(most or PIECES[device], pays, min(shares) // max(fewest, unit)))
    parts = [in_units(share, count, unit) for share in shares]
    return [
        [
            slice(first + starts(part)[k], first + starts(part)[k] + part[k])
            for first, part in zip(starts(shares), parts, strict=True)
        ]
        for k in range(count)
    ]


def in_units(total: int, parts: int, unit: int) -> list[int]:
    """``total`` in ``parts`` multiples of ``unit``, as even as can be; the last has the rest."""
    sizes = [unit * units for units in even_split(total // unit, parts)]
    sizes[-1] += total % unit
    return sizes


def through(
    widths: Sequence[Sequence[int]],
    layout: Layout,
    send: Callable[[int], Tensor],
    work: Callable[[int, Tensor], Tensor],
    receive: Callable[[int, Tensor], None],
) -> None:
    """Bring each piece of the columns to its ranks, work on it there, and bring it back.

    Args:
        widths: of each piece, the elements of a token that each rank works on, all sequences'.
        layout: of the tokens.
        send: (number of the piece) to the own tokens of its columns, one rank's columns behind the
            other's, flat; each rank's token first: [n, width]. Asked for once, in their order.
        work: (number of the piece, all tokens of the own columns [N, width] flat) to what takes
            their place, as flat; it may be written into what was given.
        receive: (number of the piece, what came back, laid out as ``send`` gave it).
    """
    ranks = layout.ranks
    mine = layout.counts[ranks.rank]

    def leave(k: int) -> Finish:
        return ranks.start_flat(send(k), dealt[k], kept[k])

    dealt = [[mine * width for width in piece] for piece in widths]
    kept = [[count * piece[ranks.rank] for count in layout.counts] for piece in widths]
    coming = leave(0)
    returning: Finish | None = None
    for k in range(len(widths)):
        here = coming()
        if k + 1 < len(widths):
            coming = leave(k + 1)
        here = work(k, here)
        # It sets out before the one that came back is put in its place.
        back = ranks.start_flat(here, kept[k], dealt[k])
        if returning is not None:
            receive(k - 1, returning())
        returning = back
    assert returning is not None
    receive(len(widths) - 1, returning())

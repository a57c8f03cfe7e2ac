"""An exchange of tokens for columns and back, in chunks, so that communication overlaps compute.

While one chunk of the columns is computed, the next is on its way to its ranks and the one before
on its way back. So an exchange holds a few chunks in memory, not two copies of the whole tensor.

Shapes: B batch, n own tokens, N all tokens, c own columns of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.ranks import even_split, offsets_of

MAX_CHUNKS = {"cpu": 64, "cuda": 2}
"""Most chunks of an exchange: more chunks hold less memory, fewer cost fewer messages."""
MIN_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Least that a rank receives of a chunk, in bytes; smaller exchanges are not chunked further."""

ColumnChunk = list[slice]
"""The columns that are exchanged together: a slice for each rank, of the columns that it gets."""

Finish = Callable[[], Tensor]


def chunk_sizes(chunk: ColumnChunk) -> list[int]:
    """Number of columns of each rank."""
    return [columns.stop - columns.start for columns in chunk]


def split_columns(
    shares: Sequence[int],
    column_bytes: int,
    device: str,
    fewest: int = 1,
    *,
    unit: int = 1,
    most: int | None = None,
) -> list[ColumnChunk]:
    """Split the columns into chunks, each with a part of every rank's share.

    Args:
        shares: columns of each rank; the shares follow each other.
        column_bytes: size of one column of all tokens.
        device: "cpu" or "cuda".
        fewest: least columns of a chunk, of each rank.
        unit: the columns of every chunk are a multiple of it, but for a rank's last chunk.
        most: most chunks, ``MAX_CHUNKS`` by default.
    """
    worthwhile = column_bytes * max(shares) // MIN_CHUNK_BYTES[device]
    count = max(1, min(most or MAX_CHUNKS[device], worthwhile, min(shares) // max(fewest, unit)))
    parts = [split_in_multiples(share, count, unit) for share in shares]
    return [
        [
            slice(first + offsets_of(part)[k], first + offsets_of(part)[k] + part[k])
            for first, part in zip(offsets_of(shares), parts, strict=True)
        ]
        for k in range(count)
    ]


def split_in_multiples(total: int, parts: int, unit: int) -> list[int]:
    """``total`` in ``parts`` multiples of ``unit``, as even as can be; the last has the rest."""
    sizes = [unit * units for units in even_split(total // unit, parts)]
    sizes[-1] += total % unit
    return sizes


def pipelined_all_to_all(
    widths: Sequence[Sequence[int]],
    layout: Layout,
    send: Callable[[int], Tensor],
    work: Callable[[int, Tensor], Tensor],
    receive: Callable[[int, Tensor], None],
) -> None:
    """Exchange each chunk of the columns, compute it where it arrives, and exchange it back.

    Args:
        widths: for each chunk, the elements of a token that each rank gets, of all sequences.
        layout: of the tokens.
        send: ``send(k)`` gives chunk k of the own tokens, flat: for each rank in turn, its columns
            [n, width], tokens first. Called once per chunk, in their order.
        work: ``work(k, columns)`` gives the result of the own columns of chunk k of all tokens,
            both [N, width] flat; it may write over its argument.
        receive: ``receive(k, flat)`` takes the results of the own tokens, laid out as ``send``'s.
    """
    ranks = layout.ranks
    mine = layout.counts[ranks.rank]

    def start(k: int) -> Finish:
        return ranks.start_all_to_all_flat(send(k), sent[k], received[k])

    sent = [[mine * width for width in chunk] for chunk in widths]
    received = [[count * chunk[ranks.rank] for count in layout.counts] for chunk in widths]
    arriving = start(0)
    returning: Finish | None = None
    for k in range(len(widths)):
        columns = arriving()
        if k + 1 < len(widths):
            arriving = start(k + 1)
        columns = work(k, columns)
        # It is sent before the results of the chunk before are copied to their places.
        back = ranks.start_all_to_all_flat(columns, received[k], sent[k])
        if returning is not None:
            receive(k - 1, returning())
        returning = back
    assert returning is not None
    receive(len(widths) - 1, returning())

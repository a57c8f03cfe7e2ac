"""Bytes that a rank sends in the collectives, derived on paper."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.parallel.comm.layout import METADATA, Layout

INTEGER_BYTES = 8


def metadata_bytes(ranks: int) -> int:
    """What a rank sends before each call: the metadata and a status, to each other rank."""
    return INTEGER_BYTES * (len(METADATA) + 1) * (ranks - 1)


def all_reduce_bytes(payload: int, ranks: int) -> int:
    """What a rank sends in a ring all-reduce of ``payload`` bytes, to the nearest byte."""
    return round(2 * payload * (ranks - 1) / ranks)


def exchange_bytes(layout: Layout, rank: int, shares: Sequence[int]) -> tuple[int, int]:
    """What ``rank`` sends of an exchange of tokens for columns, and of the exchange back.

    Args:
        layout: of the tokens.
        rank: the rank.
        shares: bytes of one token in the columns of each rank.
    """
    own = layout.counts[rank]
    return own * (sum(shares) - shares[rank]), (layout.total - own) * shares[rank]

"""Refuses calls that ask for weights where none are held."""

from __future__ import annotations

from flashmix.errors import ArgumentError, ImplementationError


def no_packed_weights(where: str) -> ArgumentError:
    """The error where a call asks for the weights of packed tokens."""
    return ArgumentError(
        f"{where}: return_weights takes padded tokens [B, N, D] with a mask, not "
        "packed ones; pass flashmix.unpack(x, packed)"
    )


def check_weights_impl(where: str, impl: str) -> None:
    """Only the reference holds the N x N weights; an explicit other ``impl`` raises."""
    if impl not in ("auto", "reference", "naive"):
        raise ImplementationError(
            f"{where}: impl={impl!r} never holds the N x N weights; "
            "return_weights needs impl='auto' or 'reference'"
        )

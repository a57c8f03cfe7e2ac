"""What dispatch chose while a block ran: rows of benchmarks keep it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from flashmix.ops._compile import constant_in_graphs
from flashmix.ops.dispatch.signature import Direction, Signature


@dataclass(frozen=True)
class Choice:
    """The implementation that was chosen for a call.

    ``shape`` is that of the first argument, None where a graph was compiled for any.
    """

    op: str
    impl: str
    dtype: torch.dtype
    shape: tuple[int, ...] | None
    options: tuple[tuple[str, int | bool], ...]
    direction: Direction


def implementations_by_op(choices: Iterable[Choice]) -> dict[str, list[str]]:
    """The implementations that were chosen, by op, in the order of their first call."""
    found: dict[str, list[str]] = {}
    for choice in choices:
        if choice.impl not in found.setdefault(choice.op, []):
            found[choice.op].append(choice.impl)
    return found


_blocks: list[dict[Choice, None]] = []


@contextlib.contextmanager
def recorded_choices() -> Iterator[dict[Choice, None]]:
    """The choices that calls in this block take, each once, in order: what runs, as it is run."""
    found: dict[Choice, None] = {}
    _blocks.append(found)
    try:
        yield found
    finally:
        _blocks.pop()


def record(op: str, impl: str, signature: Signature) -> None:
    """Keep a choice for the blocks that record."""
    if not _blocks:
        return
    dtype, direction = signature.dtype, signature.direction
    if torch.compiler.is_compiling():
        _keep(op, impl, dtype, None, (), direction)
    else:
        options = tuple(signature.options.items())
        _keep(op, impl, dtype, tuple(signature.shape), options, direction)


@constant_in_graphs
def _keep(
    op: str,
    impl: str,
    dtype: torch.dtype,
    shape: tuple[int, ...] | None,
    options: tuple[tuple[str, int | bool], ...],
    direction: Direction,
) -> None:
    for found in _blocks:
        found[Choice(op, impl, dtype, shape, options, direction)] = None

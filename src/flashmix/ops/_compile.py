"""What ``torch.compile`` must know of plain Python functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def constant_in_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function whose result a compiled graph may keep: its arguments decide it.

    As ``torch.compiler.assume_constant_result``, which would import all of Dynamo, and Triton with
    it, to set this one attribute.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function

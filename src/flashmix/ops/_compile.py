"""What compiled, exported and traced graphs must know of plain Python functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.jit._trace import is_tracing

P = ParamSpec("P")
R = TypeVar("R")


def constant_in_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function whose result a compiled graph may keep: its arguments decide it.

    As ``torch.compiler.assume_constant_result``, which would import all of Dynamo, and Triton with
    it, to set this one attribute.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def all_known(sizes: tuple[int, ...]) -> bool:
    """Whether no size is left open by a graph that is being compiled for any."""
    if not torch.compiler.is_compiling():
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(size) for size in sizes)


def exported_for_any(*sizes: int) -> bool:
    """Whether ``torch.export`` leaves one of the sizes open."""
    return torch.compiler.is_exporting() and not all_known(sizes)


def kept_for_any(size: int) -> bool:
    """Whether what Python decides here by ``size`` would be kept for calls of other sizes.

    A trace holds no guards, and a guard of an exported graph narrows its range: there the code
    that serves every size must run.
    """
    return exported_for_any(size) if torch.compiler.is_compiling() else is_tracing()


def traced() -> bool:
    """Whether ``torch.jit.trace`` records this call."""
    return not torch.compiler.is_compiling() and is_tracing()

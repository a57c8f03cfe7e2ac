"""What a window shows: query i sees the keys from i - before to i + after, in real tokens."""

from __future__ import annotations

from flashmix.errors import ArgumentError
from flashmix.ops import _checks
from flashmix.ops._compile import kept_for_any

Window = int | tuple[int, int]
"""Keys in view; or how many to the left, and how many to the right."""


def check_window(where: str, window: object) -> None:
    """``window`` is an integer >= 1, or a pair (left, right) of integers >= 0."""
    if not isinstance(window, tuple):
        _checks.check_count(where, "window", window)
        return
    if len(window) != 2 or any(
        isinstance(side, bool) or not isinstance(side, int) or side < 0 for side in window
    ):
        raise ArgumentError(
            f"{where}: window must be an integer >= 1, or a pair (left, right) of integers >= 0, "
            f"got {window!r}; for all tokens of a side give their number"
        )


def reach(window: Window, causal: bool) -> tuple[int, int]:
    """How many keys before and after its own token a query sees."""
    if isinstance(window, tuple):
        before, after = window
        return before, 0 if causal else after
    return (window - 1, 0) if causal else (window // 2, window // 2)


def keys_in_view(window: Window) -> int:
    """The keys in view as one number, the size option of a call."""
    return sum(window) + 1 if isinstance(window, tuple) else window


def sees_all(n: int, before: int, after: int) -> bool:
    """Whether of ``n`` tokens a query sees all, or with ``after`` = 0 all that are not later."""
    return not kept_for_any(n) and before >= n - 1 and (after == 0 or after >= n - 1)

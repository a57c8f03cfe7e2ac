"""HTML from data: whatever is not made here is text, and is escaped."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable
from typing import Any

from flashmix._text import visible


class Markup(str):
    """Text that is HTML already."""


Child = str | Iterable["Child"] | None

VOID = frozenset({"meta", "input", "link", "br"})


def text(value: object) -> Markup:
    """``value`` as text of a page, visible and escaped unless it is markup."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(visible(str(value)), quote=False))


def words(sentence: str) -> Markup:
    """A sentence in which what stands between backticks is code."""
    parts = sentence.split("`")
    if len(parts) % 2 == 0:
        return text(sentence)
    return join(tag("code", part) if i % 2 else part for i, part in enumerate(parts))


def join(children: Iterable[Child]) -> Markup:
    """Children one after the other; None gives nothing."""
    parts = []
    for child in children:
        if child is None:
            continue
        parts.append(text(child) if isinstance(child, str) else join(child))
    return Markup("".join(parts))


def tag(name: str, /, *children: Child, **attributes: Any) -> Markup:
    """An element; ``data_rows`` is written as data-rows, and False and None are left out."""
    shown = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value), quote=True)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def data(identity: str, value: Any) -> Markup:
    """A block of JSON for the page's script; nothing in it can end the block.

    NaN and infinity, which JSON lacks, are null.
    """
    encoded = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        encoded = encoded.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{identity}">{encoded}</script>')


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value

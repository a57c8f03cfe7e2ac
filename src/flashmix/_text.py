"""Text from elsewhere, made safe to look at."""

from __future__ import annotations

KEPT = frozenset("\n\t\xa0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))
"""What is neither printable by Python's definition nor able to mislead: line ends and spaces."""


def visible(text: str) -> str:
    r"""``text`` with what a terminal would obey or hide shown as an escape, such as ``\x1b``.

    These are control characters (C0 but for line end and tab, and C1), marks that turn the
    direction of writing, other invisible characters, and halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or char in KEPT
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def one_line(text: str) -> str:
    """``text`` as :func:`visible` has it, on one line."""
    return " ".join(visible(text).split())

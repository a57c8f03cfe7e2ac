"""Names, docstrings, messages and docs use the words of the field."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

INSTEAD = {
    r"roads?": "implementation, algorithm or code path",
    r"outdone": "deprioritized_reason",
    r"(goes|gone|go|going) about": "how it computes",
    r"(goes|go|went|going) by": "uses",
    r"parted": "separated; no significant difference",
    r"told( apart)?": "described; statistically distinguishable",
    r"counts for|stands? for": "applies to, represents",
    r"dealt out": "scheduled",
    r"what travels": "communicated data",
    r"contenders?|everyday": "baselines",
    r"knobs?": "size options",
    r"over ranks": "across ranks",
    r"uncut|unsplit|unplanned": "unsupported_reason",
    r"turn_round|token_major|lengthened": "reverse_columns, empty_bnhd, embedded_filter",
    r"part_of_gradient": "scale_gradient",
}
"""A word, as a pattern of whole words, and what to say."""


def texts():
    for folder in ("src", "docs"):
        for kind in ("*.py", "*.cpp", "*.h", "*.md"):
            yield from sorted((ROOT / folder).rglob(kind))
    yield from (ROOT / "README.md", ROOT / "CONTRIBUTING.md")


def test_the_fields_words_are_used():
    pattern = re.compile(rf"\b({'|'.join(INSTEAD)})\b", re.IGNORECASE)
    found = []
    for path in texts():
        name = str(path.relative_to(ROOT))
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for match in pattern.finditer(line):
                say = next(to for word, to in INSTEAD.items() if re.fullmatch(word, match[0], re.I))
                found.append(f"{name}:{number}: {match[0]!r}; say: {say}")
    assert not found, "\n".join(found)

"""Write docs/models.md, which mixers each family of models takes: make models.

Every cell is found by swapping a small model. ``--check`` changes nothing and fails where the page
is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import transformers

from flashmix.bench.store import write_whole
from flashmix.hf.families import KINDS, Family
from flashmix.hf.support import NO_PADDING, columns, reasons, refusals

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
INTRODUCTION = """\
# Which models

Each row is a family of models of transformers {version}. A small model of it with random weights
was swapped to every mixer, and "yes" stands where that worked; below each table stands what the
swap said where it refused. `unpad` is `swap(model, "attention", unpad=True)`, "-" where inputs have
no padding. `flashmix list --models` makes the same table with the transformers that is installed.
Other models than these are tried in the same way: no list of names decides.

`tests/test_families.py` swaps these models and compares the outputs with formulas: `attention` with
the model's own, `local` with the model's own under a band, `topk` under the largest scores, `fnet`,
`spectral` and `fourier` with their transforms. Padding changes no output, every weight gets a
gradient, and saving and loading gives the same outputs back.
"""


def page() -> str:
    """The page, as markdown."""
    parts = [INTRODUCTION.format(version=transformers.__version__)]
    for kind, families in KINDS.items():
        parts.append(f"\n## {kind}\n\n{table(families)}")
    return "".join(parts)


def table(families: tuple[Family, ...]) -> str:
    """The families as a table, and a list of what they refuse and why."""
    lines = [f"| model | class | {' | '.join(columns())} |", "|---|---|" + "---|" * len(columns())]
    refused = {family: refusals(family) for family in families}
    for family, errors in refused.items():
        cells = [cell(errors.get(name)) for name in columns()]
        lines.append(f"| {family.name} | `{family.model}` | {' | '.join(cells)} |")
    lines.append("")
    for family, errors in refused.items():
        if reasons(errors):
            lines.append(f"- **{family.name}**: {'. '.join(reasons(errors))}.")
    return "\n".join(lines).rstrip("\n") + "\n"


def cell(error: str | None) -> str:
    """What stands in the table for a refusal, or for none."""
    return "yes" if error is None else "-" if error == NO_PADDING else "refused"


def main() -> int:
    """Update or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    transformers.utils.logging.set_verbosity_error()
    new = page()
    if not check:
        write_whole(PAGE, new)
    elif not PAGE.exists() or new != PAGE.read_text():
        print("docs/models.md is out of date; run: make models", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

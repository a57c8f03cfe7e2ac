"""Write the README's tables and picture anew: make readme.

Those of results are of the committed ones; that of the mixers is what their classes declare.

``--check`` changes nothing and fails where the README's tables are out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from flashmix.bench import read_rows, read_run
from flashmix.bench.store import write_whole
from flashmix.cli.listing import WIDTH
from flashmix.mixers import MIXERS, create_mixer
from flashmix.report import markdown_table, summary_section

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
PICTURE = ("benchmarks/results/cpu/quick", "speedup-fused-forward")
"""The run and the chart that the README shows, in light and dark."""

MARKER = re.compile(r"(<!-- results: (?P<run>\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

MIXERS_MARKER = re.compile(r"(<!-- mixers -->\n).*?(<!-- end of mixers -->)", re.DOTALL)


def mixers() -> str:
    """A line for each mixer."""
    lines = [f"| name | what it does | cost | parameters at D = {WIDTH} |", "|---|---|---|---:|"]
    for name, kind in MIXERS.items():
        count = sum(p.numel() for p in create_mixer(name, WIDTH).parameters())
        lines.append(f"| `{name}` | {kind.summary} | {kind.cost} | {count:,} |")
    return "\n".join(lines) + "\n"


def block(folder: Path) -> str:
    """The summary table of a run, with what it was measured on."""
    run, section = read_run(folder), summary_section(read_rows(folder))
    assert section.table is not None
    machine = run["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {run['threads']} threads"
    return (
        f"{markdown_table(section.table)}\n\n{' '.join(section.text)} {where}, PyTorch "
        f"{machine['packages']['torch']}. `{run['command']}`; every sample, quartile and interval "
        f"is in [{folder.relative_to(ROOT)}]({folder.relative_to(ROOT)}/report.md).\n"
    )


def draw() -> None:
    """Write the README's picture in both themes."""
    import vl_convert

    from flashmix.report.charts import charts
    from flashmix.report.write import picture_spec

    run, name = PICTURE
    (chart,) = (one for one in charts(read_rows(ROOT / run)) if one.name == name)
    IMAGES.mkdir(exist_ok=True)
    for mode in ("light", "dark"):
        picture = vl_convert.vegalite_to_svg(picture_spec(chart, mode))
        write_whole(IMAGES / f"{name}-{mode}.svg", picture)


def main() -> int:
    """Update or check the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = README.read_text()
    new = MARKER.sub(lambda m: m[1] + "\n" + block(ROOT / m["run"]) + "\n" + m[3], old)
    new = MIXERS_MARKER.sub(lambda m: m[1] + "\n" + mixers() + "\n" + m[2], new)
    if check:
        if new != old:
            print("README.md is out of date; run: make readme", file=sys.stderr)
        return int(new != old)
    README.write_text(new)
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())

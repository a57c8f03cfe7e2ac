"""Write the tables of docs/kernels.md's CPU part anew from the committed run: make reports.

Each stands between ``<!-- cpu kernels: NAME -->`` and ``<!-- end -->``. ``--check`` changes nothing
and fails where they are out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from flashmix.bench import read_rows
from flashmix.bench.store import Row, write_whole

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "kernels.md"
RUN = ROOT / "benchmarks/results/cpu/kernels"
MARKER = re.compile(r"(<!-- cpu kernels: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Shape = tuple[int, int, int, int | None]
FORWARD, BOTH = "forward", "forward_backward"


class Measured:
    """The run's rows of one op: medians in ms and peaks in MB by shape, impl and direction."""

    def __init__(self, rows: list[Row], op: str) -> None:
        done = [row for row in rows if row["op"] == op and row["status"] == "ok"]
        self._rows = {
            (self._shape(r), r["impl"], r["direction"]): r for r in done if r["mixer"] != "copy"
        }
        self.shapes = list(dict.fromkeys(self._shape(row) for row in done))

    @staticmethod
    def _shape(row: Row) -> Shape:
        knob = row["window"] or row["topk"] or row["modes"]
        return row["batch"], row["seq_len"], row["dim"], knob

    def _value(self, key: str, shape: Shape, impl: str, direction: str) -> float | None:
        row = self._rows.get((shape, impl, direction))
        return None if row is None else row[key]

    def ms(self, shape: Shape, impl: str, direction: str = FORWARD) -> str:
        """The median, in milliseconds."""
        return figure(self._value("median_ms", shape, impl, direction))

    def mb(self, shape: Shape, impl: str) -> str:
        """The forward's peak memory, in MB."""
        return figure(self._value("peak_mb", shape, impl, FORWARD))

    def times(self, shape: Shape, other: str, direction: str = FORWARD) -> str:
        """How many times as fast "cpu" is as ``other``."""
        mine, theirs = (self._value("median_ms", shape, i, direction) for i in ("cpu", other))
        return f"{theirs / mine:.1f}x" if mine and theirs else "-"

    def share(self, shape: Shape, other: str) -> str:
        """The peak memory of "cpu", forward and backward, as a share of that of ``other``."""
        mine, theirs = (self._value("peak_mb", shape, i, BOTH) for i in ("cpu", other))
        return f"{mine / theirs:.2f}" if mine and theirs else "-"


def figure(value: float | None) -> str:
    """Three digits, with commas."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(heads: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def local(of: Measured) -> str:
    """Windows against SDPA with a mask and FlexAttention."""
    heads = ["local, window", "N", "SDPA with a mask", "FlexAttention", '`"torch"`', '`"cpu"`']
    lines = [
        [
            f"{s[3]}",
            f"{s[1]:,}",
            *(of.ms(s, i) for i in ("sdpa-mask", "flex", "torch", "cpu")),
            of.times(s, "sdpa-mask"),
            of.times(s, "sdpa-mask", BOTH),
        ]
        for s in of.shapes
        if s[1] in (512, 2048, 8192)
    ]
    return table([*heads, "against the mask", "with backward"], lines)


def topk(of: Measured) -> str:
    """Exact top-k against what users write and against dense fused attention."""
    heads = ["top-k 32, N", "as written", "fused attention", '`"torch"`', '`"cpu"`']
    more = [
        "against as written",
        "against fused",
        "with backward, against fused",
        'memory, MB: as written, `"cpu"`',
    ]
    lines = [
        [
            f"{s[1]:,}",
            *(of.ms(s, i) for i in ("topk-scatter", "sdpa", "torch", "cpu")),
            of.times(s, "topk-scatter"),
            of.times(s, "sdpa"),
            of.times(s, "sdpa", BOTH),
            f"{of.mb(s, 'topk-scatter')}, {of.mb(s, 'cpu')}",
        ]
        for s in of.shapes
    ]
    return table([*heads, *more], lines)


def against(title: str, usual: str, knob: str = "") -> Callable[[Measured], str]:
    """A table of one op against the usual way to write it."""

    def make(of: Measured) -> str:
        heads = [title, f"`{usual}`", '`"torch"`', '`"cpu"`', "forward", "with backward"]
        lines = [
            [
                f"[{s[0]}, {s[1]}, {s[2]}]" + (f", {s[3]} {knob}" if knob else ""),
                *(of.ms(s, i) for i in (usual, "torch", "cpu")),
                of.times(s, usual),
                of.times(s, usual, BOTH),
                of.share(s, usual),
            ]
            for s in of.shapes
        ]
        return table([*heads, "its memory"], lines)

    return make


TABLES: dict[str, Callable[[Measured], str]] = {
    "local_attention": local,
    "topk_attention": topk,
    "block_topk_attention": against("block top-k", "sdpa", "keys"),
    "fnet": against("fnet", "fftn"),
    "spectral": against("spectral", "rfft-filter-irfft", "modes"),
    "fourier": against("fourier", "rfft-weigh-irfft"),
}


def main() -> int:
    """Update or check the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    rows, old = read_rows(RUN), DOCS.read_text()

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        return f"{found[1]}{TABLES[name](Measured(rows, name))}\n{found[3]}"

    new = MARKER.sub(block, old)
    if check:
        if new != old:
            print(f"{DOCS.relative_to(ROOT)} is out of date; run: make reports", file=sys.stderr)
        return int(new != old)
    write_whole(DOCS, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())

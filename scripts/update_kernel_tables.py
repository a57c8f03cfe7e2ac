"""Write the tables of docs/design/kernels-*.md anew from the committed runs: make reports.

Each stands between ``<!-- cpu kernels: NAME -->`` (or ``h200``) and ``<!-- end -->``, and is of the
op's own run, ``kernels-NAME``, where there is one, else of ``kernels``. ``--check`` changes nothing
and fails where they are out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from flashmix.bench import read_rows
from flashmix.bench.case import COPY
from flashmix.bench.store import Row, write_whole
from flashmix.report.analysis.timings import is_full

ROOT = Path(__file__).resolve().parent.parent
DOCS = ("kernels-fourier.md", "kernels-attention.md", "kernels-cpu.md")
RUNS = ROOT / "benchmarks/results"
MARKER = re.compile(
    r"(<!-- (?P<place>\w+) kernels: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL
)

PADDED = "Padded, lengths drawn from N/4 to N, with a mask:"

Shape = tuple[int, int, int, int | None]
FORWARD, BOTH = "forward", "forward_backward"


class Measured:
    """The run's rows of one op: medians in ms and peaks in MB by shape, impl and direction."""

    def __init__(self, rows: list[Row], op: str) -> None:
        done = [row for row in rows if row["op"] == op and row["status"] == "ok"]
        self._rows = {
            (self._shape(r), COPY if r["mixer"] == COPY else r["impl"], r["direction"]): r
            for r in done
        }
        self.shapes = list(dict.fromkeys(self._shape(row) for row in done))

    @staticmethod
    def _shape(row: Row) -> Shape:
        knob = row["window"] or row["topk"] or row["modes"]
        return row["batch"], row["seq_len"], row["dim"], knob

    def _value(self, key: str, shape: Shape, impl: str, direction: str) -> float | None:
        row = self._rows.get((shape, impl, direction))
        return None if row is None else row[key]

    def us(self, shape: Shape, impl: str, direction: str = FORWARD) -> str:
        """The median, in microseconds."""
        ms = self._value("median_ms", shape, impl, direction)
        return figure(None if ms is None else 1e3 * ms)

    def copies(self, shape: Shape, impl: str) -> str:
        """The forward's median in microseconds, and as a multiple of the time of a copy."""
        ms, copy = (self._value("median_ms", shape, i, FORWARD) for i in (impl, COPY))
        return f"{figure(1e3 * ms)} ({ms / copy:.2f}x)" if ms and copy else "-"

    def forwards(self, shape: Shape, impl: str) -> str:
        """Forward and backward as a multiple of the forward."""
        both, forward = (self._value("median_ms", shape, impl, d) for d in (BOTH, FORWARD))
        return f"{both / forward:.2f}" if both and forward else "-"

    def ms(self, shape: Shape, impl: str, direction: str = FORWARD) -> str:
        """The median, in milliseconds."""
        return figure(self._value("median_ms", shape, impl, direction))

    def mb(self, shape: Shape, impl: str) -> str:
        """The forward's peak memory, in MB."""
        return figure(self._value("peak_mb", shape, impl, FORWARD))

    def times(self, shape: Shape, other: str, direction: str = FORWARD, mine: str = "cpu") -> str:
        """How many times as fast ``mine`` is as ``other``."""
        mine, theirs = (self._value("median_ms", shape, i, direction) for i in (mine, other))
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


def transform(title: str, usual: str, roads: tuple[str, ...]) -> Callable[[Measured], str]:
    """A GPU table of a transform: microseconds of the forward, and multiples of the copy."""

    def make(of: Measured) -> str:
        heads = [title, "copy", f"`{usual}`", *(f'`"{road}"`' for road in roads)]
        lines = [
            [
                f"[{s[0]}, {s[1]:,}, {s[2]}]" + (f", {s[3]:,} modes" if s[3] else ""),
                of.us(s, COPY),
                *(of.copies(s, i) for i in (usual, *roads)),
                " / ".join(of.forwards(s, i) for i in roads if i.startswith("triton")),
            ]
            for s in of.shapes
        ]
        return table([*heads, "with backward, in forwards"], lines)

    return make


def heads(title: str, others: tuple[str, ...]) -> Callable[[Measured], str]:
    """A GPU table of an attention with eight heads of width 64, in microseconds."""

    def make(of: Measured) -> str:
        names = [title, "batch", "N", "copy", *(f"`{one}`" for one in (*others, "triton"))]
        lines = [
            [
                f"{s[3]:,}",
                f"{s[0]}",
                f"{s[1]:,}",
                of.us(s, COPY),
                *(of.us(s, i) for i in (*others, "triton")),
                of.times(s, "sdpa", mine="triton"),
                of.us(s, "triton", BOTH),
                of.times(s, "sdpa", BOTH, mine="triton"),
            ]
            for s in sorted(of.shapes)
        ]
        more = ["against `sdpa`", "with backward", "against `sdpa`"]
        return table([*names, *more], lines)

    return make


TABLES: dict[tuple[str, str], Callable[[Measured], str]] = {
    ("cpu", "local_attention"): local,
    ("cpu", "topk_attention"): topk,
    ("cpu", "block_topk_attention"): against("block top-k", "sdpa", "keys"),
    ("cpu", "fnet"): against("fnet", "fftn"),
    ("cpu", "spectral"): against("spectral", "rfft-filter-irfft", "modes"),
    ("cpu", "fourier"): against("fourier", "rfft-weigh-irfft"),
    ("h200", "fnet"): transform("fnet", "fftn", ("torch", "triton", "triton_columns", "dense")),
    ("h200", "spectral"): transform(
        "spectral", "rfft-filter-irfft", ("torch", "triton", "triton_columns")
    ),
    ("h200", "local_attention"): heads("window", ("sdpa", "sdpa-mask", "flex", "torch")),
    ("h200", "topk_attention"): heads("k", ("sdpa", "topk-scatter", "torch")),
    ("h200", "block_topk_attention"): heads("keys", ("sdpa", "torch")),
}


def written(text: str) -> str:
    """``text`` with its tables as the runs have them."""

    def block(found: re.Match[str]) -> str:
        place, name = found["place"], found["name"]
        run = RUNS / place / f"kernels-{name}"
        rows = read_rows(run if run.is_dir() else RUNS / place / "kernels")
        make = TABLES[place, name]
        text = make(Measured([row for row in rows if is_full(row)], name))
        padded = Measured([row for row in rows if not is_full(row)], name)
        if padded.shapes:
            text += f"\n\n{PADDED}\n\n{make(padded)}"
        return f"{found[1]}{text}\n{found[4]}"

    return MARKER.sub(block, text)


def main() -> int:
    """Update or check the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check, stale = parser.parse_args().check, 0
    for name in DOCS:
        path = ROOT / "docs/design" / name
        old = path.read_text()
        new = written(old)
        if check and new != old:
            print(f"docs/design/{name} is out of date; run: make reports", file=sys.stderr)
            stale = 1
        if not check:
            write_whole(path, new)
    return stale


if __name__ == "__main__":
    sys.exit(main())

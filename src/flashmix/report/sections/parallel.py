"""Suite ``parallel``: P ranks against one, strong and weak scaling, memory, bytes, agreement.

On GPUs also of CUDA graphs, whose rows are kept apart from those of plain calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.case import COPY
from flashmix.bench.store import Row
from flashmix.report.analysis.parallel import Pair, called, pairs
from flashmix.report.tables import (
    Cell,
    Finding,
    Section,
    Table,
    direction_name,
    interval,
    memory_cell,
    number,
    status_cell,
    time_cell,
)


def sections(rows: Sequence[Row]) -> list[Section]:
    """The tables of the suite for each direction."""
    found = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        every = [row for row in rows if row["direction"] == direction]
        part, graphs = called(every), called(every, graph=True)
        name = direction_name(direction)
        found += [
            _strong(part, name),
            *([_strong(graphs, name, graph=True)] if graphs else []),
            _memory(part, name),
            _weak(part, name),
            _bytes(part, name),
            _agreement(part, name),
        ]
    return found


def _over(rows: Sequence[Row], *, weak: bool) -> list[Row]:
    """Rows over several ranks."""
    return [row for row in rows if (row["ranks"] or 1) > 1 and row["weak"] == weak]


def _strong(rows: Sequence[Row], direction: str, *, graph: bool = False) -> Section:
    found = {id(pair.several): pair for pair in pairs(rows, graph=graph)}
    alone = {(row["mixer"], row["seq_len"]): row for row in rows if row["ranks"] == 1}
    body = []
    for row in _over(rows, weak=False):
        pair, single = found.get(id(row)), alone.get((row["mixer"], row["seq_len"]))
        line = [
            row["mixer"],
            f"{row['seq_len']:,}",
            f"{row['ranks']}",
            _median(single),
            _median(row),
            Cell(interval(pair.speedup), *pair.rows) if pair else "-",
        ]
        if not graph:
            line.append(Cell(f"{number(pair.memory)}x", *pair.rows) if pair else "-")
        body.append(line)
    columns = ["mixer", "N", "ranks", "one rank (ms)", "all ranks (ms)", "speed-up"]
    if graph:
        return Section(
            f"Several ranks as CUDA graphs, relative to one, {direction}",
            [
                "Captured once and replayed, on one rank and across all, timed in turn with the "
                "plain calls above: GPU work and communication without Python's time. Memory, "
                "bytes and agreement are measured on plain calls only."
            ],
            Table(columns, body),
        )
    return Section(
        f"Several ranks relative to one, {direction}",
        [
            "The same N on one rank and across all, timed in turn until the slowest rank has "
            "finished; medians. The single rank has as many threads as each of the several. "
            "Memory per rank: the largest peak of any rank over that of the single rank."
        ],
        Table([*columns, "memory per rank"], body),
    )


def _median(row: Row | None) -> str:
    if row is None or row["status"] != "ok":
        return status_cell(row)
    return Cell(number(row["median_ms"]) + (" ~" if row["noisy"] else ""), row)


def _memory(rows: Sequence[Row], direction: str) -> Section:
    alone = {(row["mixer"], row["seq_len"]): row for row in rows if row["ranks"] == 1}
    body = []
    for row in _over(rows, weak=False):
        single, copy = alone.get((row["mixer"], row["seq_len"])), alone.get((COPY, row["seq_len"]))
        body.append(
            [
                row["mixer"],
                f"{row['seq_len']:,}",
                f"{row['ranks']}",
                memory_cell(single) if single and single["status"] == "ok" else "-",
                memory_cell(row) if row["status"] == "ok" else "-",
                time_cell(row),
                _times_copy(row, copy),
            ]
        )
    columns = [
        "mixer", "N", "ranks", "peak of one rank (MB)", "peak per rank (MB)", "all ranks (ms)",
        "times a copy",
    ]  # fmt: skip
    return Section(
        f"Memory, and time relative to a copy, {direction}",
        [
            "Tensors allocated during one call, beyond inputs and weights. A copy: a rank reads "
            "and writes its share of [B, N, D] once (twice for the backward), as measured on one "
            "rank."
        ],
        Table(columns, body),
    )


def _times_copy(row: Row, copy: Row | None) -> str:
    if copy is None or copy["status"] != "ok" or row["status"] != "ok":
        return "-"
    times = row["median_ms"] * row["ranks"] / copy["median_ms"]
    return Cell(f"{number(times)}x", row, copy)


def _weak(rows: Sequence[Row], direction: str) -> Section:
    body = [
        [
            pair.single["mixer"],
            f"{pair.single['seq_len']:,}",
            f"{pair.several['ranks']}",
            time_cell(pair.single),
            time_cell(pair.several),
            Cell(interval(pair.speedup, ""), *pair.rows),
            Cell(f"{number(pair.memory)}x", *pair.rows),
        ]
        for pair in pairs(rows, weak=True)
    ]
    columns = [
        "mixer", "N of each rank", "ranks", "one rank (ms)", "all ranks (ms)", "efficiency",
        "memory per rank / one rank",
    ]  # fmt: skip
    return Section(
        f"Weak scaling, {direction}",
        [
            "N grows with the number of ranks, so that each holds as many tokens as the single "
            "one. Efficiency: time of one rank over that of all; 1 if work is linear in N and "
            "communication is free. The work of attention and top-k grows with N squared: at best "
            "1 / ranks."
        ],
        Table(columns, body),
    )


def _bytes(rows: Sequence[Row], direction: str) -> Section:
    body = []
    for row in [*_over(rows, weak=False), *_over(rows, weak=True)]:
        if row["status"] != "ok" or "sent_bytes" not in row:
            continue
        sent, derived = row["sent_bytes"], row["derived_bytes"]
        body.append(
            [
                row["mixer"],
                f"{row['seq_len']:,}",
                f"{row['ranks']}",
                Cell(number(sent / 1e6), row),
                "-" if derived is None else Cell(number(derived / 1e6), row),
                Cell(number(sent / derived), row) if derived else "-",
            ]
        )
    columns = ["mixer", "N", "ranks", "sent (MB)", "derived (MB)", "sent / derived"]
    return Section(
        f"Bytes sent by a rank, {direction}",
        [
            "Of the rank that sends most: counted at each call of PyTorch's collectives, and "
            "derived by formula (docs/parallel.md), gradients of parameters included. An "
            "all-reduce is counted as 2 (P - 1) / P times its payload, what a ring sends."
        ],
        Table(columns, body),
    )


def _agreement(rows: Sequence[Row], direction: str) -> Section:
    body = [
        [
            row["mixer"],
            f"{row['seq_len']:,}",
            f"{row['ranks']}",
            Cell(f"{row['relative_error']:.1e}", row),
        ]
        for row in _over(rows, weak=False)
        if row.get("relative_error") is not None
    ]
    what = "Output" if direction == "forward" else "Output and input's gradient"
    return Section(
        f"Agreement with one rank, {direction}",
        [
            f"{what}: the largest relative error of any rank's slice, with the same weights and "
            "input."
        ],
        Table(["mixer", "N", "ranks", "relative error"], body),
    )


def statements(rows: Sequence[Row]) -> list[str]:
    """What the run supports of each mixer across ranks, at the longest N measured."""
    longest: dict[tuple[str, str], Pair] = {}
    for pair in (*pairs(rows), *pairs(rows, graph=True)):
        key = (pair.several["label"], pair.direction)
        if key not in longest or pair.single["seq_len"] > longest[key].single["seq_len"]:
            longest[key] = pair
    return [_statement(pair) for pair in longest.values()]


def _statement(pair: Pair) -> str:
    speed, direction = pair.speedup, direction_name(pair.direction)
    if speed.low > 1:
        verdict = f"is {interval(speed)} as fast as on one rank"
    elif speed.high < 1:
        verdict = f"is not faster than on one rank, {interval(speed)} as fast"
    else:
        verdict = f"has no significant difference in speed from one rank, {interval(speed)} as fast"
    if pair.several.get("graph"):
        return f"{pair.name} {verdict}, both as CUDA graphs ({direction})."
    return f"{pair.name} {verdict}, with {number(pair.memory)}x its memory per rank ({direction})."


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Most speed-up, and least memory of a rank, at the longest N of a mixer."""
    scaled = pairs(rows)
    if not scaled:
        return []
    fastest = max(scaled, key=lambda pair: pair.speedup.value)
    smallest = min(scaled, key=lambda pair: pair.memory)
    return [
        Finding(
            f"{number(fastest.speedup.value)}x",
            f"as fast as one rank, the largest speed-up: {fastest.name}, "
            f"{direction_name(fastest.direction)} (95 % interval "
            f"{number(fastest.speedup.low)} to {number(fastest.speedup.high)}).",
            fastest.rows,
        ),
        Finding(
            f"{number(smallest.memory)}x",
            f"the memory of one rank on each of several, the smallest share: {smallest.name}, "
            f"{direction_name(smallest.direction)}.",
            smallest.rows,
        ),
    ]

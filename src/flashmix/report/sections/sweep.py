"""A sweep over N: time, speed, growth, memory and crossovers of mixers against attention."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from flashmix.bench.store import Row
from flashmix.report.analysis.timings import DIRECTIONS, FUSED, NAIVE, Sweep, comparable
from flashmix.report.analysis.training import trainings
from flashmix.report.sections import digits
from flashmix.report.sections.claims import Published
from flashmix.report.tables import (
    Cell,
    Finding,
    Section,
    Table,
    crossover,
    direction_name,
    interval,
    memory_cell,
    number,
    params_cell,
    speed_cell,
    status_cell,
    time_cell,
)

PUBLISHED = tuple(
    Published(source="efficient-attention study", label=label, seq_len=n, times=1)
    for label in ("topk", "local")
    for n in (256, 512, 1024)
)


def sections(rows: Sequence[Row]) -> list[Section]:
    """The sections of a suite that sweeps N: every table for each direction."""
    found = []
    plain = comparable(rows)
    for direction in DIRECTIONS:
        sweep = Sweep(plain, direction)
        if not sweep.cells:
            continue
        found.append(time_section(sweep))
        found += [
            speedup_section(sweep, baseline)
            for baseline in (FUSED, NAIVE)
            if baseline in sweep.cells
        ]
        found += [
            crossover_section(sweep),
            growth_section(sweep),
            memory_section(sweep),
            issue_section(sweep),
        ]
    found += padded_sections(rows)
    trained = trainings(rows)
    if trained:
        found.append(digits.section(trained))
    if sweeps := [s for d in DIRECTIONS if (s := Sweep(plain, d)).cells]:
        found.append(parameter_section(sweeps[0]))
    return found


def padded_sections(rows: Sequence[Row]) -> list[Section]:
    """Padded batches beside full ones, each against fused attention of the same lengths."""
    found = []
    for direction, name in DIRECTIONS.items():
        full = Sweep(comparable(rows), direction)
        padded = Sweep(comparable(rows, padded=True), direction)
        for n in padded.seq_lens:
            body = [
                [
                    label,
                    *(time_cell(row) if row else "-" for row in both),
                    _speed(full, label, FUSED, n),
                    _speed(padded, label, FUSED, n),
                ]
                for label in padded.cells
                for both in [(full.row(label, n), padded.row(label, n))]
            ]
            columns = ["mixer", "full", "padded", "full, vs fused", "padded, vs fused"]
            text = "Padded: lengths drawn from N/4 to N, with a mask. Times in ms."
            title = f"Padded batches, {name}, N = {n:,}"
            found.append(Section(title, [text], Table(columns, body)))
    return found


def _by_length(sweep: Sweep, cell: str, first: str) -> Table:
    rows = []
    for label in sweep.cells if cell == "time" else sweep.labels:
        line = [label]
        for n in sweep.seq_lens:
            row = sweep.row(label, n)
            if row is None or row["status"] != "ok":
                line.append(status_cell(row))
            else:
                line.append(time_cell(row) if cell == "time" else memory_cell(row))
        rows.append(line)
    return Table([first, *(f"N = {n:,}" for n in sweep.seq_lens)], rows)


def time_section(sweep: Sweep) -> Section:
    """Median times with quartiles, and the time of a copy."""
    return Section(
        f"Time, {DIRECTIONS[sweep.direction]} (ms)",
        [
            "Median and quartiles. `copy` reads and writes [B, N, D] once"
            + (", twice for forward + backward" if sweep.direction != "forward" else "")
            + ": a lower bound for any mixer. `~` marks a noisy row, whose quartiles are more than "
            "25 % of the median apart."
        ],
        _by_length(sweep, "time", "mixer"),
    )


def issue_section(sweep: Sweep) -> Section:
    """On a GPU: Python's time to issue a call, and from which N the GPU takes longer than that."""
    body = []
    for label in sweep.labels:
        rows = [row for n in sweep.measured(label) if "host_ms" in (row := sweep.cells[label][n])]
        if not rows:
            continue
        paced = [row["seq_len"] for row in rows if row["median_ms"] < row["host_ms"]]
        longer = [row["seq_len"] for row in rows if row["seq_len"] > max(paced, default=0)]
        start = f"N = {longer[0]:,}" if longer else "not in range"
        issue = Cell(number(median(row["host_ms"] for row in rows)), *rows)
        body.append([label, issue, Cell(start, *rows)])
    return Section(
        f"Python's time to issue a call, {DIRECTIONS[sweep.direction]}",
        [
            "The other tables show GPU time only. Calls in a row each take the larger of the two "
            "times: at an N shorter than the one named here the mixer is bound by Python, unless "
            "it is captured in a CUDA graph."
        ],
        Table(["mixer", "issue (ms), median over N", "GPU time is longer from"], body),
    )


def memory_section(sweep: Sweep) -> Section:
    """Peak memory, with the N x N matrix beside it."""
    table = _by_length(sweep, "memory", "mixer")
    line = ["one N x N matrix per head"]
    for n in sweep.seq_lens:
        row = next(cells[n] for cells in sweep.cells.values() if n in cells)
        size = 8 if row["dtype"] == "float64" else 4 if row["dtype"] == "float32" else 2
        line.append(Cell(number(row["batch"] * row["num_heads"] * n * n * size / 1e6), row))
    return Section(
        f"Peak memory, {DIRECTIONS[sweep.direction]} (MB)",
        [
            "Tensors allocated beyond inputs and weights. Last row: the size of the attention "
            "matrices."
        ],
        Table(table.columns, [*table.rows, line]),
    )


def speedup_section(sweep: Sweep, baseline: str) -> Section:
    """How many times faster than a baseline, with intervals."""
    rows = [
        [label, *(_speed(sweep, label, baseline, n) for n in sweep.seq_lens)]
        for label in sweep.labels
        if label != baseline
    ]
    return Section(
        f"Speed against {baseline}, {DIRECTIONS[sweep.direction]}",
        ["Above 1x is faster than the baseline. 95 % bootstrap intervals of the ratio of medians."],
        Table(["mixer", *(f"N = {n:,}" for n in sweep.seq_lens)], rows),
    )


def _speed(sweep: Sweep, label: str, baseline: str, seq_len: int) -> str:
    ours = sweep.row(label, seq_len)
    return "-" if ours is None else speed_cell(ours, sweep.row(baseline, seq_len))


def _all(sweep: Sweep, *labels: str) -> list[Row]:
    """Every row of some labels, by length."""
    return [row for label in labels for row in sweep.cells.get(label, {}).values()]


def crossover_section(sweep: Sweep) -> Section:
    """From which N each mixer is faster, and smaller, than each baseline."""
    rows = [
        [
            label,
            Cell(crossover(sweep.crossover(label, FUSED)), *_all(sweep, label, FUSED)),
            Cell(crossover(sweep.crossover(label, NAIVE)), *_all(sweep, label, NAIVE)),
            Cell(crossover(sweep.memory_crossover(label, FUSED)), *_all(sweep, label, FUSED)),
        ]
        for label in sweep.labels
        if label not in (NAIVE, FUSED)
    ]
    return Section(
        f"Crossover, {DIRECTIONS[sweep.direction]}",
        ["The N from which a mixer stays ahead at every longer N, interpolated on log-log axes."],
        Table(["mixer", "faster than fused", "faster than naive", "less memory than fused"], rows),
    )


def growth_section(sweep: Sweep) -> Section:
    """Growth per doubling of N, and the fitted exponent."""
    doublings = [n for n in sweep.seq_lens if n // 2 in sweep.seq_lens]
    rows = []
    for label in sweep.labels:
        growth, by_length = dict(sweep.growth(label)), sweep.cells[label]
        cells = [
            Cell(f"{number(growth[n].value)}x", by_length[n // 2], by_length[n])
            if n in growth
            else "-"
            for n in doublings
        ]
        exponent = Cell(interval(sweep.exponent(label), ""), *by_length.values())
        rows.append([label, *cells, exponent])
    return Section(
        f"Growth per doubling of N, {DIRECTIONS[sweep.direction]}",
        ["2x is linear, 4x is quadratic. Exponent: slope of log time against log N."],
        Table(["mixer", *(f"to {n:,}" for n in doublings), "exponent"], rows),
    )


def parameter_section(sweep: Sweep) -> Section:
    """Parameters of each mixer at the run's width."""
    rows = []
    for label in sweep.labels:
        if measured := sweep.measured(label):
            rows.append([label, params_cell(sweep.cells[label][measured[0]])])
    dim = next(iter(next(iter(sweep.cells.values())).values()))["dim"]
    return Section("Parameters", [f"At width {dim}."], Table(["mixer", "parameters"], rows))


def statements(sweep: Sweep) -> list[str]:
    """Whether each mixer is faster than fused attention, and from which N."""
    if FUSED not in sweep.cells:
        return []
    return [_against_fused(sweep, label) for label in _others(sweep)]


def _against_fused(sweep: Sweep, label: str) -> str:
    lengths = sorted({*sweep.measured(label)} & {*sweep.measured(FUSED)})
    direction = direction_name(sweep.direction)
    if not lengths:
        return (
            f"Whether {label} is faster than fused attention is not tested ({direction}): this run "
            "measured them at no length in common."
        )
    span = f"N = {lengths[0]:,} to {lengths[-1]:,}"
    everywhere, anywhere = f"at every length, {span}", f"at any length, {span}"
    if len(lengths) == 1:
        everywhere = anywhere = f"at N = {lengths[0]:,}"
    crossing = sweep.crossover(label, FUSED)
    if crossing.kind == "always":
        return f"{label} is faster than fused attention {everywhere} ({direction})."
    if crossing.kind == "never":
        return (
            f"{label} is not faster than fused attention {anywhere} ({direction}): not supported."
        )
    if crossing.kind == "from":
        return (
            f"{label} is faster than fused attention from {crossover(crossing)}, not at smaller N "
            f"({direction})."
        )
    return (
        f"Whether {label} is faster than fused attention {anywhere.replace('any', 'every')} is not "
        f"decided by this run ({direction}): the intervals overlap or the order changes."
    )


def _others(sweep: Sweep) -> list[str]:
    return [label for label in sweep.labels if label not in (NAIVE, FUSED)]


def findings(sweep: Sweep) -> list[Finding]:
    """The largest speed-up over fused attention, and which mixers are faster from which N."""
    return [finding for finding in (_fastest(sweep), _from_where(sweep)) if finding]


def _fastest(sweep: Sweep) -> Finding | None:
    """The largest speed-up over fused attention at the longest length measured with it."""
    lengths = sweep.measured(FUSED)
    labels = [label for label in _others(sweep) if lengths and sweep.ok(label, lengths[-1])]
    if not labels:
        return None
    n = lengths[-1]
    best = min(labels, key=lambda label: sweep.cells[label][n]["median_ms"])
    value = sweep.speedup(best, FUSED, n)
    assert value is not None
    rows = (sweep.cells[best][n], sweep.cells[FUSED][n])
    where = f"{best}, {direction_name(sweep.direction)} at N = {n:,}"
    where += f" (95 % interval {number(value.low)} to {number(value.high)})."
    text = "the speed of fused attention, no significant difference"
    if value.low > 1:
        text = "as fast as fused attention"
    elif value.high < 1:
        text = "the speed of fused attention, the most that any mixer reaches"
    text += f": {where}"
    return Finding(f"{number(value.value)}x", text, rows)


def _from_where(sweep: Sweep) -> Finding | None:
    """How many mixers pass fused attention, and from which length."""
    labels = _others(sweep)
    if not labels or len(sweep.measured(FUSED)) < 2:
        return None
    groups: dict[str, list[str]] = {}
    for label in labels:
        crossing = sweep.crossover(label, FUSED)
        at = f"{label} from {crossover(crossing)}" if crossing.kind == "from" else label
        groups.setdefault(crossing.kind, []).append(at)
    ahead = [*groups.get("always", ()), *groups.get("from", ())]
    parts = []
    if "always" in groups:
        parts.append(f"{', '.join(groups['always'])} at every length")
    if "from" in groups:
        parts.append("; ".join(groups["from"]))
    if "never" in groups:
        parts.append(f"{', '.join(groups['never'])} at none")
    if "unclear" in groups:
        parts.append(f"{', '.join(groups['unclear'])} undecided")
    text = f"mixers are faster than fused attention at some N, {direction_name(sweep.direction)}: "
    rows = tuple(row for label in (*labels, FUSED) for row in sweep.cells[label].values())
    return Finding(f"{len(ahead)} of {len(labels)}", text + "; ".join(parts) + ".", rows)


def memory_findings(sweep: Sweep) -> list[Finding]:
    """The lowest peak of memory against fused attention."""
    lengths = sweep.measured(FUSED)
    labels = [label for label in _others(sweep) if lengths and sweep.ok(label, lengths[-1])]
    if not labels:
        return []
    n = lengths[-1]
    peak = {label: sweep.cells[label][n]["peak_mb"] for label in (*labels, FUSED)}
    best = min(labels, key=peak.__getitem__)
    if not peak[FUSED]:
        return []
    return [
        Finding(
            f"{number(peak[best] / peak[FUSED])}x",
            f"the peak memory of fused attention, forward + backward, N = {n:,}: {best} needs "
            f"{number(peak[best])} MB, fused attention {number(peak[FUSED])} MB.",
            (sweep.cells[best][n], sweep.cells[FUSED][n]),
        )
    ]

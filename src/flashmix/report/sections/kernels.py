"""Suite kernels: every op against its baselines, and sparse attention against dense."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from flashmix.bench.case import COPY
from flashmix.bench.store import Row
from flashmix.report.analysis.timings import DIRECTIONS, Sweep, is_full, kernel_ratios
from flashmix.report.tables import (
    Cell,
    Finding,
    Section,
    Table,
    crossover,
    direction_name,
    interval,
    number,
    status_cell,
)

PADDED = (
    "Padded: lengths drawn from N/4 to N, with a mask; the copy is of the whole padded tensor. "
    "Transforms of the baselines know no mask and mix the padding in."
)


def sections(rows: Sequence[Row]) -> list[Section]:
    """Each op's implementations and baselines by shape: time, and multiple of a copy's time."""
    found = []
    for op in dict.fromkeys(row["op"] for row in rows):
        for direction, name in DIRECTIONS.items():
            part = [row for row in rows if row["op"] == op and row["direction"] == direction]
            if part:
                found.append(_kernel_section(op, name, part))
    return [*found, *sparse_sections(rows)]


def _kernel_section(op: str, direction: str, rows: Sequence[Row]) -> Section:
    groups: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row[k] for k in ("batch", "seq_len", "dim", "window", "topk", "modes"))
        key += (is_full(row),)
        groups.setdefault(key, {})[row["label"]] = row
    labels = list(dict.fromkeys(row["label"] for row in rows if row["label"] != COPY))
    body = []
    for key, cells in groups.items():
        copy = cells.get(COPY)
        line = [
            _shape(key),
            Cell(number(copy["median_ms"]), copy) if copy and copy["status"] == "ok" else "-",
        ]
        body.append(line + [_against_copy(cells.get(label)) for label in labels])
    text = ["Medians, and multiples of the time to copy the input once (twice for the backward)."]
    if not all(map(is_full, rows)):
        text.append(PADDED)
    if any("host_ms" in row for row in rows):
        text.append("Times are GPU time only; issue: Python's time to issue a call.")
    return Section(
        f"{op}, {direction} (ms)",
        text,
        Table(["shape", "copy", *labels], body),
    )


def _against_copy(row: Row | None) -> str:
    """Median, and how many times the copy it takes; on a GPU also the time to issue the call."""
    if row is None or row["status"] != "ok":
        return status_cell(row)
    copy_ms = row.get("floor_ms")
    multiple = f" ({number(row['median_ms'] / copy_ms)}x copy)" if copy_ms else ""
    issue = f", issue {number(row['host_ms'])}" if "host_ms" in row else ""
    return Cell(f"{number(row['median_ms'])}{multiple}{issue}", row)


def _shape(key: tuple[object, ...]) -> str:
    names = ("window", "top", "modes")
    sizes = [f"{n} {v}" for n, v in zip(names, key[3:6], strict=True) if v is not None]
    padded = [] if key[6] else ["padded"]
    return ", ".join([f"[{key[0]}, {key[1]}, {key[2]}]", *sizes, *padded])


def statements(rows: Sequence[Row]) -> list[str]:
    """Each implementation relative to each baseline, in the geometric mean over shapes."""
    full, padded = (_statements(rows, padded=padded) for padded in (False, True))
    return [*full, *padded]


def _statements(rows: Sequence[Row], *, padded: bool) -> list[str]:
    found = []
    for (op, direction, ours), against in kernel_ratios(rows, padded=padded).items():
        parts = [
            f"{number(math.exp(statistics.fmean(map(math.log, ratios))))}x the speed of "
            f"{theirs} ({number(min(ratios))}x to {number(max(ratios))}x over {len(ratios)} shapes)"
            for theirs, ratios in against.items()
        ]
        name = direction_name(direction) + (", padded batches" if padded else "")
        found.append(f"{op}, {ours}, {name}: in the geometric mean {', '.join(parts)}.")
    return found


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Each implementation relative to its fastest baseline."""
    found = []
    for (op, direction, ours), against in kernel_ratios(rows).items():
        theirs, ratios = min(
            against.items(), key=lambda item: statistics.fmean(map(math.log, item[1]))
        )
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        text = f"the speed of {theirs}: {op}, {ours}, {direction_name(direction)}, geometric mean "
        text += f"of {len(ratios)} shapes ({number(min(ratios))}x to {number(max(ratios))}x)."
        used = [
            row
            for row in rows
            if (row.get("op"), row["direction"]) == (op, direction)
            and is_full(row)
            and row["label"] in (ours, theirs)
        ]
        found.append((mean, Finding(f"{number(mean)}x", text, tuple(used))))
    return [finding for _, finding in sorted(found, key=lambda pair: -pair[0])]


DENSE = "sdpa"


def sparse_sections(rows: Sequence[Row]) -> list[Section]:
    """Crossovers against fused dense attention, and the quality of block selection."""
    return [section for section in (_crossovers(rows), _selection(rows)) if section is not None]


def _series(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows that differ in N alone, by op and what they have in common.

    Kept keys count as a share of N where they grow with it.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        measured = is_full(row) and row["direction"] in DIRECTIONS
        if measured and (row.get("op") or "").endswith("attention"):
            common = [f"batch {row['batch']}", f"{row['num_heads']} heads"]
            if row["window"] is not None:
                common.append(f"window {row['window']}")
            if row["op"] == "block_topk_attention":
                common.append(f"1/{round(row['seq_len'] / row['topk'])} of the keys")
            elif row["topk"] is not None:
                common.append(f"top {row['topk']}")
            found.setdefault((row["op"], ", ".join(common)), []).append(row)
    return found


def _crossovers(rows: Sequence[Row]) -> Section | None:
    body = []
    for (op, common), series in _series(rows).items():
        for direction, name in DIRECTIONS.items():
            sweep = Sweep(series, direction)
            both = sweep.measured(DENSE)
            for label in sweep.labels:
                lengths = [n for n in sweep.measured(label) if n in both]
                if label == DENSE or len(lengths) < 2:
                    continue
                crossing = crossover(sweep.crossover(label, DENSE))
                last = sweep.cells[label][lengths[-1]]
                body.append(
                    [
                        op,
                        common,
                        name,
                        label,
                        crossing,
                        f"{lengths[0]:,} to {lengths[-1]:,}",
                        Cell(interval(sweep.speedup(label, DENSE, lengths[-1])), last),
                        interval(sweep.exponent(label), ""),
                    ]
                )
    if not body:
        return None
    columns = [
        "op",
        "shape",
        "direction",
        "implementation",
        "faster than fused dense attention",
        "N measured",
        "speed at the largest N",
        "exponent of N",
    ]
    text = [
        "The N from which each is faster than fused dense attention. Time grows as N to the "
        "exponent."
    ]
    return Section("From which N sparse attention is faster", text, Table(columns, body))


def _selection(rows: Sequence[Row]) -> Section | None:
    body = []
    for row in rows:
        if row["direction"] == "properties" and row["status"] == "ok" and row.get("op"):
            properties = row["properties"]
            for name, found in properties["inputs"].items():
                body.append(
                    [
                        f"[{row['batch']}, {row['seq_len']}, {row['dim']}], top {row['topk']}",
                        name,
                        Cell(f"{100 * properties['kept_share']:.3g} %", row),
                        Cell(f"{100 * found['recall']:.3g} %", row),
                        Cell(f"{100 * found['weight_kept']:.3g} %", row),
                        Cell(number(found["error_against_exact"]), row),
                        Cell(number(found["error_against_dense"]), row),
                    ]
                )
    if not body:
        return None
    columns = [
        "shape",
        "inputs",
        "keys kept",
        "recall of the exact keys",
        "dense weight kept",
        "output error against exact",
        "against dense",
    ]
    text = [
        "Blocks are chosen by their means. A random choice would have a recall equal to the share "
        "of keys kept. Errors are relative norms over sampled queries."
    ]
    return Section("What block selection misses", text, Table(columns, body))

"""Sparse attention beside fused dense attention: from which N it is faster, and what it misses."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis import DIRECTIONS, Sweep
from flashmix.report.tables import Cell, Section, Table, interval, number

DENSE = "sdpa"


def sparse_sections(rows: Sequence[Row]) -> list[Section]:
    """Crossovers against fused dense attention, and the quality of block selection."""
    return [one for one in (_crossovers(rows), _selection(rows)) if one is not None]


def _series(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows that differ in N alone, by op and what they have in common.

    Kept keys count as a share of N where they grow with it.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.get("op", "").endswith("attention") and row["direction"] in DIRECTIONS:
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
                crossing = tables.crossover(sweep.crossover(label, DENSE))
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
    text = ["From which N on each is faster; time grows with N to the power of the exponent."]
    return Section("From which N sparse attention pays", text, Table(columns, body))


def _selection(rows: Sequence[Row]) -> Section | None:
    body = []
    for row in rows:
        if row["direction"] == "facts" and row["status"] == "ok" and row.get("op"):
            facts = row["facts"]
            for name, found in facts["inputs"].items():
                body.append(
                    [
                        f"[{row['batch']}, {row['seq_len']}, {row['dim']}], top {row['topk']}",
                        name,
                        Cell(f"{100 * facts['kept_share']:.3g} %", row),
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
        "Blocks are chosen by their means; a choice at random would recall as large a share as it "
        "keeps. Errors are relative norms, over sampled queries."
    ]
    return Section("What block selection misses", text, Table(columns, body))

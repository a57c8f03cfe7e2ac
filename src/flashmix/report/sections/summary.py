"""The one table that a terminal and the README show of a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.report import tables
from flashmix.report.analysis.timings import DIRECTIONS, FUSED, Sweep, comparable
from flashmix.report.analysis.training import Training, trainings
from flashmix.report.tables import Cell, Section, Table


def summary_section(rows: Sequence[Row]) -> Section:
    """One table for the terminal and the README: forward times, training times and accuracy."""
    plain = comparable(rows)
    forward, backward = (Sweep(plain, direction) for direction in DIRECTIONS)
    lengths = sorted({*forward.seq_lens, *backward.seq_lens})
    if not lengths:
        return Section("Summary", table=Table(["mixer"], []))
    padded = Sweep(comparable(rows, padded=True), "forward")
    padded_at = padded.seq_lens[:1]
    shown = [n for n in lengths if n in (lengths[0], 512, lengths[-1])]
    longest = lengths[-1]
    trained = trainings(rows)
    body = []
    for label in dict.fromkeys([*forward.labels, *backward.labels]):
        memory = backward.ok(label, longest)
        score = _training_of(label, trained)
        body.append(
            [
                label,
                *(_time(forward, label, n) for n in shown),
                *(_time(padded, label, n) for n in padded_at),
                "1x" if label == FUSED else _against(forward, label, longest),
                _time(backward, label, longest),
                tables.memory_cell(memory) if memory else "-",
                Cell(
                    f"{100 * statistics.fmean(score.accuracies):.1f} %"
                    + (f" ({score.seeds} seeds)" if score.failed else ""),
                    *score.rows,
                )
                if score and score.accuracies
                else "-",
            ]
        )
    note = "padded: lengths drawn from N/4 to N, with a mask. " if padded_at else ""
    case = next(row for row in plain if row["direction"] in DIRECTIONS)
    return Section(
        "Summary",
        [
            f"Medians in ms: forward at N tokens, then forward + backward at N = {longest:,} with "
            f"its peak memory. {note}vs fused: forward at N = {longest:,} against fused attention. "
            f"digits: held-out accuracy, mean over seeds. Batch {case['batch']}, width "
            f"{case['dim']}, {case['num_heads']} heads, {case['dtype']}, {case['device']}."
        ],
        Table(
            [
                "mixer",
                *(f"N={n:,}" for n in shown),
                *(f"N={n:,}, padded" for n in padded_at),
                "vs fused",
                "fwd+bwd",
                "peak MB",
                "digits",
            ],
            body,
        ),
    )


def _training_of(label: str, trained: Sequence[Training]) -> Training | None:
    """The training of a timed mixer: of that very variant, or of the only one of its name."""
    wanted = "attention" if label == FUSED else label
    exact = [training for training in trained if training.mixer == wanted]
    named = [training for training in trained if training.mixer.partition("(")[0] == wanted]
    if exact:
        return exact[0]
    return named[0] if len(named) == 1 else None


def _against(sweep: Sweep, label: str, seq_len: int) -> str:
    value = sweep.speedup(label, FUSED, seq_len)
    if value is None:
        return "-"
    rows = (sweep.cells[name][seq_len] for name in (label, FUSED))
    return Cell(f"{tables.number(value.value)}x", *rows)


def _time(sweep: Sweep, label: str, seq_len: int) -> str:
    row = sweep.ok(label, seq_len)
    if row is None:
        return tables.status_cell(sweep.row(label, seq_len))
    return Cell(tables.number(row["median_ms"]), row)

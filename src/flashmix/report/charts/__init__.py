"""The charts of a run, each as one Vega-Lite specification for the page and for pictures."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.case import COPY
from flashmix.bench.store import Row
from flashmix.report.analysis.timings import Sweep, is_full
from flashmix.report.analysis.training import is_finetuning
from flashmix.report.charts.dots import copy_chart, model_charts, parameter_chart, single_charts
from flashmix.report.charts.lines import align
from flashmix.report.charts.parallel import rank_charts
from flashmix.report.charts.profile import profile_charts
from flashmix.report.charts.sweep import sweep_charts
from flashmix.report.charts.training import digits_chart, finetuning_charts
from flashmix.visualize.chart import Chart

__all__ = ["Chart", "align", "charts"]

DIRECTIONS = ("forward", "forward_backward", "backward", "train_step")
SUBJECTS = ("mixer", "encoder")


def charts(rows: Sequence[Row]) -> list[Chart]:
    """Every chart that ``rows`` give, those of a fine-tuning run first.

    Raises:
        MissingDependencyError: altair is not installed.
    """
    tuned = [row for row in rows if is_finetuning(row)]
    cases = [r for r in rows if not is_finetuning(r) and r.get("suite") != "parallel"]
    found: list[Chart | None] = [*finetuning_charts(tuned)]
    for subject in SUBJECTS:
        part = [r for r in cases if r.get("subject", "mixer") == subject and is_full(r)]
        found += _timed(part)
    found += _ops([row for row in cases if row.get("subject") == "op"])
    found += profile_charts(cases)
    found += model_charts([row for row in cases if row.get("suite") != "profile"])
    found.append(digits_chart(cases))
    found += rank_charts(rows)
    return [chart for chart in found if chart is not None]


def _timed(rows: Sequence[Row]) -> list[Chart]:
    """The charts of one subject; of several widths, those of the largest."""
    timed = [row for row in rows if row["direction"] in DIRECTIONS]
    widest = max((row["dim"] for row in timed), default=0)
    timed = [row for row in timed if row["dim"] == widest]
    found: list[Chart] = []
    for direction in DIRECTIONS:
        part = [row for row in timed if row["direction"] == direction]
        if not part:
            continue
        if len({row["seq_len"] for row in part}) > 1:
            found += sweep_charts(Sweep(part, direction), _where(part))
        else:
            found += single_charts(part, direction, _where(part))
    parameters = parameter_chart(timed) if timed else None
    return [*found, *([parameters] if parameters else [])]


def _where(rows: Sequence[Row]) -> str:
    """The shape, dtype and device of rows that share them."""
    row = next((row for row in rows if row["label"] != COPY), rows[0])
    heads = f"{row['num_heads']} heads" if row["num_heads"] > 1 else "1 head"
    return f"Batch {row['batch']}, width {row['dim']}, {heads}, {row['dtype']}, {row['device']}"


def _ops(rows: Sequence[Row]) -> list[Chart | None]:
    found = []
    for op in dict.fromkeys(row["op"] for row in rows):
        for direction in DIRECTIONS:
            part = [row for row in rows if row["op"] == op and row["direction"] == direction]
            if part:
                found.append(copy_chart(op, direction, part))
    return found

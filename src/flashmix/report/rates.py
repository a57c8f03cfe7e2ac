"""The learning rates that were tried, and the one that each model took."""

from __future__ import annotations

from collections.abc import Sequence

from flashmix.bench.store import Row
from flashmix.bench.training.search import best_rates, undecided
from flashmix.report.tables import Section, Table


def rate_section(rows: Sequence[Row], rates: Sequence[float], *, accuracy: bool) -> Section:
    """Validation by pattern and rate, with the rate chosen.

    Args:
        rows: of search.jsonl; the last of a pattern and rate counts.
        rates: those that were tried, in order; with fewer than two there is nothing to tell.
        accuracy: whether accuracy decided, or the loss on hidden tokens.
    """
    if len(rates) < 2 or not rows:
        return Section("")
    trials = {(row["mixers"], row["lr"]): row for row in rows}
    best = best_rates(list(trials.values()), rates)
    chosen = {mixers: f"{rate:g}" for mixers, rate in best.items()}
    open_trials = undecided(list(dict.fromkeys(row["mixers"] for row in rows)), rates, rows)
    chosen |= {mixers: "undecided" for mixers, _, _ in open_trials}
    body = []
    for mixers in dict.fromkeys(row["mixers"] for row in rows):
        cells = [_cell(trials.get((mixers, rate)), accuracy) for rate in rates]
        body.append([mixers, *cells, chosen.get(mixers, "-")])
    what = "Accuracy on validation" if accuracy else "Loss on hidden tokens of held-out text"
    return Section(
        "Learning rates",
        [
            f"{what} with the first seed, by peak learning rate. The best one trained all seeds; "
            "no trial read the test set.",
            *(["Undecided: a trial has no result; resume the run."] if open_trials else []),
        ],
        Table(["mixers", *(f"{rate:g}" for rate in rates), "chosen"], body),
    )


def _cell(row: Row | None, accuracy: bool) -> str:
    if row is None or row["status"] != "ok":
        return str(row["status"]).upper() if row else "-"
    return f"{100 * row['val_accuracy']:.2f} %" if accuracy else f"{row['val_loss']:.3f}"

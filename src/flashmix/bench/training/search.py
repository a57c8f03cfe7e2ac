"""The learning rate of each pattern: several are tried with the first seed, validation chooses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flashmix.bench.store import SEARCH_FILE, Row, RunFolder, read_rows
from flashmix.bench.training.jobs import RESULTS, Job, clean
from flashmix.bench.training.running import Results

KEPT = ("status", "error", "val_accuracy", "val_loss", "best_epoch", "steps", "history", "impl_ran")


def choose_rates(
    jobs: Sequence[Job],
    rates: Sequence[float],
    folder: RunFolder,
    do: Callable[[list[Job]], Results],
) -> dict[str, float]:
    """Train a pattern's first seed with each rate, and return the best rate by pattern.

    A trial is kept as a row of search.jsonl. It reads no test set. The best one is the training of
    that seed: its folder takes the seed's place, and the job that follows goes on from there.

    A trial whose loss diverges has a result, one whose process was killed or failed has none: then
    its pattern's rate is undecided, and the pattern is left out until a resumed run decided it.

    Args:
        jobs: a training of each pattern.
        rates: peak learning rates, one of which is to be chosen.
        folder: the run's.
        do: does jobs.
    """
    trials = {(job["mixers"], rate): _trial(job, rate) for job in jobs for rate in rates}
    finished = _finished(folder.path)
    todo = [trial for key, trial in trials.items() if key not in finished]
    for trial, result in do(todo) if todo else ():
        folder.append(_row(trial, result), SEARCH_FILE)
    finished = _finished(folder.path)
    best = best_rates(list(finished.values()), rates)
    chosen = {}
    for job in jobs:
        mixers = job["mixers"]
        if any((mixers, rate) not in finished for rate in rates):
            continue
        # Where all diverged, the first says so as the seed's own training.
        chosen[mixers] = best.get(mixers, rates[0])
        _keep(Path(trials[mixers, chosen[mixers]]["folder"]), Path(job["folder"]))
        for rate in rates:
            clean(Path(trials[mixers, rate]["folder"]))
    return chosen


def undecided(
    mixers: Sequence[str], rates: Sequence[float], rows: Sequence[Row]
) -> list[tuple[str, float, Row | None]]:
    """The trials that have no result, each with its row of search.jsonl if it was tried.

    Args:
        mixers: the patterns of the run.
        rates: those to be tried; of fewer than two, none is.
        rows: of search.jsonl.
    """
    if len(rates) < 2:
        return []
    tried = {(row["mixers"], row["lr"]): row for row in rows}
    finished = _with_result(rows)
    every = itertools.product(mixers, rates)
    return [(*key, tried.get(key)) for key in every if key not in finished]


def best_rates(rows: Sequence[Row], rates: Sequence[float]) -> dict[str, float]:
    """By pattern, the rate whose trial was best on validation; of equals the first of ``rates``."""
    best: dict[str, Row] = {}
    scored = [row for row in rows if "score" in row and row["lr"] in rates]
    for row in sorted(scored, key=lambda row: rates.index(row["lr"])):
        held = best.setdefault(row["mixers"], row)
        if row["score"] > held["score"]:
            best[row["mixers"]] = row
    return {mixers: row["lr"] for mixers, row in best.items()}


def _row(trial: Job, result: dict[str, Any]) -> Row:
    row = {"mixers": trial["mixers"], "seed": trial["seed"], "lr": trial["config"]["lr"]}
    row |= {name: result[name] for name in KEPT if name in result}
    if result["status"] == "ok":
        by_accuracy = trial["kind"] == "finetune"
        row["score"] = result["val_accuracy"] if by_accuracy else -result["val_loss"]
    return row


def _finished(folder: Path) -> dict[tuple[str, float], Row]:
    return _with_result(read_rows(folder, SEARCH_FILE))


def _with_result(rows: Sequence[Row]) -> dict[tuple[str, float], Row]:
    return {(row["mixers"], row["lr"]): row for row in rows if row["status"] in RESULTS}


def _trial(job: Job, rate: float) -> dict[str, Any]:
    return {
        **job,
        "config": {**job["config"], "lr": rate},
        "folder": f"{job['folder']}-lr-{rate:g}",
        "trial": True,
    }


def _keep(trial: Path, place: Path) -> None:
    if trial.exists() and not place.exists():
        trial.rename(place)

"""A run's report: its sections in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashmix.bench.store import Row
from flashmix.report import tables, training
from flashmix.report.about import machine_section, method_section
from flashmix.report.analysis import DIRECTIONS, FUSED, NAIVE, Sweep, comparable, trainings
from flashmix.report.claims import published_verdicts, statements
from flashmix.report.finetuning import is_finetuning, mixers_name
from flashmix.report.ran import implementation_section
from flashmix.report.studies import STUDIES
from flashmix.report.tables import Cell, Section, Table


def sections(run: dict[str, Any], rows: Sequence[Row]) -> list[Section]:
    """The whole report of a run."""
    found = [
        Section("What this run supports", [f"- {one}" for one in statements(rows)]),
        *result_sections(run, rows),
        machine_section(run),
        method_section(run, rows),
    ]
    return [one for one in found if (one.table.rows if one.table else one.text)]


def result_sections(run: dict[str, Any], rows: Sequence[Row]) -> list[Section]:
    """The tables of a run: its suite's, the published claims checked, what did not finish."""
    body = suite_sections(run, rows)
    if body is None:
        body = sweep_sections(rows)
    found = [*body, _published(rows), implementation_section(rows), _failures(rows)]
    return [one for one in found if (one.table.rows if one.table else one.text)]


def suite_sections(run: dict[str, Any], rows: Sequence[Row]) -> list[Section] | None:
    """The sections of a suite that has its own, trainings among them; None for a plain sweep."""
    if run.get("suite") in training.SUITES:
        return training.result_sections(run, rows)
    build = STUDIES.get(run.get("suite", ""))
    return build(rows) if build else None


def sweep_sections(rows: Sequence[Row]) -> list[Section]:
    """The sections of a suite that sweeps N: every table for each direction."""
    found = []
    plain = comparable(rows)
    for direction in DIRECTIONS:
        sweep = Sweep(plain, direction)
        if not sweep.cells:
            continue
        found.append(tables.time_section(sweep))
        found += [
            tables.speedup_section(sweep, one) for one in (FUSED, NAIVE) if one in sweep.cells
        ]
        found += [
            tables.crossover_section(sweep),
            tables.growth_section(sweep),
            tables.memory_section(sweep),
            tables.issue_section(sweep),
        ]
    trained = trainings(rows)
    if trained:
        found.append(tables.training_section(trained))
    if sweeps := [s for d in DIRECTIONS if (s := Sweep(plain, d)).cells]:
        found.append(tables.parameter_section(sweeps[0]))
    return found


def _published(rows: Sequence[Row]) -> Section:
    body = [
        [claim.sentence, claim.source, verdict, measured]
        for claim, verdict, measured in published_verdicts(rows)
        if verdict != "not tested"
    ]
    if not body:
        return Section("")
    tested = {row[0] for row in body}
    untested = [c.sentence for c, *_ in published_verdicts(rows) if c.sentence not in tested]
    return Section(
        "Published claims, checked here",
        [
            "Other people's figures come from their machines and a naive attention. A claim counts "
            "as supported where this run's interval lies above 1x and reaches the figure.",
            f"Not tested by this run: {'; '.join(dict.fromkeys(untested))}.",
        ],
        Table(["claim", "source", "verdict", "measured here"], body),
    )


def _failures(rows: Sequence[Row]) -> Section:
    failed = [row for row in rows if row.get("status", "ok") != "ok"]
    if not failed:
        return Section("")
    body = [[case_name(row), Cell(row["status"], row), row.get("error", "")] for row in failed]
    return Section("Cases that did not finish", table=Table(["case", "status", "reason"], body))


def case_name(row: Row) -> str:
    """What a row measured, in words."""
    if is_finetuning(row):
        return f"{mixers_name(row)} on {row['task']}, seed {row.get('seed', '-')}"
    return f"{row['label']}, {row['direction']}, N = {row['seq_len']:,}"

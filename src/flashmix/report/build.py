"""A run's report: its sections in reading order, its statements and its findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flashmix.bench.store import Row
from flashmix.report.analysis.timings import DIRECTIONS, Sweep, comparable
from flashmix.report.analysis.training import is_finetuning
from flashmix.report.sections import (
    about,
    claims,
    digits,
    finetune,
    fourier,
    kernels,
    model,
    naive,
    parallel,
    profile,
    profile_advice,
    spectral,
    swap,
    sweep,
    training,
)
from flashmix.report.sections.summary import summary_section
from flashmix.report.tables import Finding, Section, Table

SUITES: dict[str, Callable[[Sequence[Row]], list[Section]]] = {
    "fourier": fourier.sections,
    "naive": naive.sections,
    "spectral": spectral.sections,
    "swap": swap.sections,
    "kernels": kernels.sections,
    "parallel": parallel.sections,
    "model": model.sections,
}
"""By suite, what makes the sections of its report from its rows; other suites sweep N."""

PUBLISHED = (*spectral.PUBLISHED, *fourier.PUBLISHED, *sweep.PUBLISHED, *swap.PUBLISHED)
"""Figures of published studies, measured there against a naive attention on other machines."""

MANY = 3


def sections(run: dict[str, Any], rows: Sequence[Row]) -> list[Section]:
    """The whole report of a run."""
    found = [
        Section("What this run supports", [f"- {sentence}" for sentence in statements(rows)]),
        *result_sections(run, rows),
        about.machine_section(run),
        about.method_section(run, rows),
    ]
    return [section for section in found if not section.empty]


def result_sections(run: dict[str, Any], rows: Sequence[Row]) -> list[Section]:
    """The tables of a run: its suite's, the published claims checked, what did not finish."""
    found = [
        *_suite_sections(run, rows),
        claims.section(rows, PUBLISHED),
        about.implementation_section(rows),
        about.failure_section(rows),
    ]
    return [section for section in found if not section.empty]


def _suite_sections(run: dict[str, Any], rows: Sequence[Row]) -> list[Section]:
    suite = run.get("suite", "")
    if suite in training.SUITES:
        return training.sections(run, rows)
    if suite == "profile":
        return profile.sections(run, rows)
    return SUITES.get(suite, sweep.sections)(rows)


def summary(run: dict[str, Any], rows: Sequence[Row]) -> Section:
    """The one table that a terminal shows of a run."""
    suite = run.get("suite")
    if suite not in (*training.SUITES, *SUITES, "profile"):
        return summary_section(rows)
    found = [section for section in _suite_sections(run, rows) if section.table]
    return found[0] if found else Section("Summary", table=Table(["mixer"], []))


def published_verdicts(rows: Sequence[Row]) -> list[claims.Checked]:
    """Each published claim against each baseline: (claim, verdict, measured here)."""
    return claims.check(rows, PUBLISHED)


def statements(rows: Iterable[Row]) -> list[str]:
    """What the run does and does not support, each sentence from its rows."""
    every = list(rows)
    cases = [row for row in every if not is_finetuning(row)]
    found = []
    for subject in ("mixer", "encoder"):
        part = comparable(cases, subject)
        for direction in (*DIRECTIONS, "train_step"):
            found += sweep.statements(Sweep(part, direction))
    return [
        *found,
        *kernels.statements(cases),
        *parallel.statements(cases),
        *profile_advice.statements(cases),
        *model.statements([row for row in cases if row.get("suite") != "profile"]),
        *digits.statements(cases),
        *finetune.statements([row for row in every if is_finetuning(row)]),
    ]


def findings(rows: Sequence[Row]) -> list[Finding]:
    """At most three, of the rows' most telling kind."""
    if any(map(is_finetuning, rows)):
        return finetune.findings(rows)[:MANY]
    if scaled := parallel.findings(rows):
        return scaled[:MANY]
    if profiled := profile_advice.findings(rows):
        return profiled[:MANY]
    found: list[Finding] = []
    for subject in ("mixer", "encoder"):
        part = comparable(rows, subject)
        for direction in ("forward", "forward_backward", "backward", "train_step"):
            found += sweep.findings(Sweep(part, direction))
    learned = digits.findings(rows)
    if not learned:
        learned = sweep.memory_findings(Sweep(comparable(rows), "forward_backward"))
    found[2:2] = learned
    return [*found, *kernels.findings(rows), *naive.findings(rows)][:MANY]

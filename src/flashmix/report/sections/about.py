"""What was run, on what machine, how, with which implementations, and what did not finish."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from flashmix.bench.store import Row
from flashmix.ops import OPERATORS
from flashmix.report.analysis.training import is_finetuning, mixers_name, model_name
from flashmix.report.sections import training
from flashmix.report.tables import Cell, Section, Table, direction_name, number


def machine_section(run: dict[str, Any]) -> Section:
    """The machine, its measured ceilings, versions and seed, as far as ``run`` holds them."""
    machine, ceilings = run.get("machine", {}), run.get("ceilings") or {}
    properties: list[list[str]] = []

    def add(what: str, *values: object) -> None:
        if all(value is not None for value in values):
            properties.append([what, " ".join(map(str, values))])

    add("command", run.get("command"))
    if run.get("started"):
        add("started, finished (UTC)", f"{run['started']}, {run.get('finished') or 'not finished'}")
    if "cpu" in machine:
        add("processor", _processor(run))
    if "gpu" in machine:
        memory = machine.get("gpu_memory_gb")
        add("GPU", machine["gpu"] + (f", {memory} GB" if memory else ""))
    if ceilings:
        add("copy", f"{number(ceilings['copy_gb_per_s'])} GB/s, bytes read and written")
        rate = number(ceilings["matmul_gflop_per_s"])
        add("matmul", f"{rate} GFLOP/s, {ceilings['matmul_dtype']}")
    named = {name: machine.get(name) for name in ("python", "flashmix")}
    named = {"Python": named["python"], "flashmix": named["flashmix"]}
    versions = {**named, **machine.get("packages", {})}
    add("versions", ", ".join(f"{name} {value}" for name, value in versions.items() if value))
    add("commit", machine.get("commit") or "unknown")
    add("seed", run.get("seed"))
    text = ["Measured ceilings: no implementation can be faster than these."] if ceilings else []
    return Section("Machine", text, Table(["what", "value"], properties))


def _processor(run: dict[str, Any]) -> str:
    machine = run["machine"]
    capability = machine.get("cpu_capability")
    parts = [machine["cpu"] + (f" ({capability})" if capability else "")]
    if "cores" in machine:
        parts.append(f"{machine['cores']} cores")
    if "threads" in run:
        parts.append(f"{run['threads']} threads")
    return ", ".join(parts)


def machine_line(run: dict[str, Any]) -> str:
    """Threads, version of PyTorch and day of a run."""
    machine = run.get("machine", {})
    parts = []
    if "gpu" not in machine and "threads" in run:
        parts.append(f"{run['threads']} thread{'' if run['threads'] == 1 else 's'}")
    if "torch" in machine.get("packages", {}):
        parts.append(f"PyTorch {machine['packages']['torch']}")
    if run.get("started"):
        parts.append(str(run["started"])[:10])
    return ", ".join(parts)


def method_section(run: dict[str, Any], rows: Sequence[Row]) -> Section:
    """How a benchmark measures, how well it repeats, and what its suite notes."""
    if run.get("suite") in training.SUITES:
        return training.method_section(run, rows)
    notes = run.get("notes") or ()
    if "ceilings" not in run:
        return Section("Method", [*notes])
    return Section(
        "Method",
        [
            "Each case runs in a worker process with a time limit. The cases of one table column "
            "are timed in turn (A B C A B C ...), so that drift affects all of them equally. The "
            "warm-up ends when two calls agree in time. Raw samples, with batch, width and heads "
            "of each case, are in results.jsonl.",
            *_gpu_time(rows),
            _repeatability(rows),
            *notes,
        ],
    )


def _gpu_time(rows: Sequence[Row]) -> list[str]:
    timed = [row for row in rows if row.get("device") == "cuda" and "samples_ms" in row]
    if not timed:
        return []
    if any("host_ms" in row for row in timed):
        return ["Times are GPU time only; the L2 cache is flushed before each call."]
    return ["Times include Python's time to issue a call where that exceeds the GPU time."]


def _repeatability(rows: Sequence[Row]) -> str:
    drift = next((row["drift"] for row in rows if "drift" in row), None)
    if drift is None:
        return "No case was measured twice: intervals cover the spread within one measurement only."

    def change(name: str) -> str:
        return f"{100 * math.expm1(1.96 * math.sqrt(2) * drift[name]):.1f} %"

    if "ratio" not in drift:
        return (
            f"{drift['cases']} cases were measured again at the end, in a fresh process: 95 % of "
            f"their times changed by less than {change('time')}. No two of them were timed in "
            "turn, so the drift of ratios is unknown, and intervals of ratios do not include it."
        )
    return (
        f"{drift['cases']} cases were measured again at the end, in a fresh process: 95 % of their "
        f"times changed by less than {change('time')}, and 95 % of the ratios of cases timed in "
        f"turn by less than {change('ratio')}. All intervals are widened by this drift."
    )


def place(run: dict[str, Any]) -> str:
    """The device that a run measured, by name."""
    machine = run.get("machine", {})
    return str(machine.get("gpu") or machine.get("cpu") or "an unnamed machine")


def headline(run: dict[str, Any], rows: Sequence[Row]) -> str:
    """Shape, dtype and device of what the run timed, or what was trained."""
    if run.get("suite") in training.SUITES:
        return training.headline(run, rows)
    if all(map(is_finetuning, rows)):
        tasks = ", ".join(dict.fromkeys(str(row["task"]) for row in rows))
        models = ", ".join(dict.fromkeys(map(model_name, rows)))
        mixers = len(dict.fromkeys(map(mixers_name, rows)))
        return f"{models} fine-tuned on {tasks} with {mixers} mixers; on {place(run)}."
    cases = [row for row in rows if not is_finetuning(row)]
    timed = [row for row in cases if row["direction"] not in ("train", "properties")] or cases

    def values(name: str) -> str:
        found = sorted({row[name] for row in timed})
        return ", ".join(map(str, found)) if len(found) <= 4 else f"{found[0]} to {found[-1]}"

    return (
        f"Batch {values('batch')}; width {values('dim')}; heads {values('num_heads')}; "
        f"{values('dtype')}; on {place(run)}. {len(rows)} cases."
    )


TITLE = "Implementations that ran"


def implementation_section(rows: Sequence[Row]) -> Section:
    """By mixer, direction and op: what ran, where "auto" chose or rows differ.

    A row whose implementation was asked for by name, and ran, is left out.
    """
    measured = [row for row in rows if row.get("status", "ok") == "ok"]
    silent = sum("impl_ran" not in row for row in measured)
    if silent and silent == len(measured):
        return Section(
            TITLE,
            [
                "Not recorded: an older version, which did not note implementations, measured the "
                "rows."
            ],
        )
    groups: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for row in measured:
        for op, names in (row.get("impl_ran") or {}).items():
            key = (*_name(row), op)
            groups.setdefault(key, {}).setdefault(" and ".join(names), []).append(row)
    body = []
    for (label, direction, op), by_names in groups.items():
        every = [row for some in by_names.values() for row in some]
        if any(list(by_names) != [_asked(row, op)] for row in every):
            body.append([label, direction, op, Cell(_describe(by_names), *every)])
    text = ["Recorded while each case was measured."]
    if silent:
        text.append(f"{silent} rows have no record: an older version measured them.")
    return Section(TITLE, text, Table(["mixer", "direction", "op", "implementation"], body))


def _name(row: Row) -> tuple[str, str]:
    if is_finetuning(row):
        return mixers_name(row), "training"
    return row["label"], direction_name(row["direction"])


def _asked(row: Row, op: str) -> str:
    """The implementation that the row asked for, by its own name."""
    asked = str(row.get("impl", "auto"))
    return OPERATORS[op].aliases.get(asked, asked) if op in OPERATORS else asked


def _describe(by_names: dict[str, list[Row]]) -> str:
    if len(by_names) == 1:
        return next(iter(by_names))
    return "; ".join(f"{names} ({_lengths(rows)})" for names, rows in by_names.items())


def _lengths(rows: Iterable[Row]) -> str:
    lengths = sorted({row["seq_len"] for row in rows if "seq_len" in row})
    return "N = " + ", ".join(f"{n:,}" for n in lengths)


def failure_section(rows: Sequence[Row]) -> Section:
    """The cases without a measurement, each with its reason."""
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

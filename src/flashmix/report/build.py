"""A run's report: its sections in reading order, and how they are written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flashmix.bench import read_rows, read_run
from flashmix.bench.store import Row, write_whole
from flashmix.report import studies, tables
from flashmix.report.analysis import DIRECTIONS, FUSED, NAIVE, Sweep, comparable, trainings
from flashmix.report.claims import published_verdicts, statements
from flashmix.report.tables import Section, Table

REPORT_FILE = "report.md"


def sections(run: dict[str, Any], rows: Sequence[Row]) -> list[Section]:
    """The whole report of a run."""
    body = SUITE_SECTIONS.get(run["suite"], sweep_sections)(rows)
    found = [
        Section("What this run supports", _bullets(statements(rows))),
        *body,
        _published(rows),
        _failures(rows),
        _machine(run),
        _method(run, rows),
    ]
    return [one for one in found if (one.table.rows if one.table else one.text)]


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


SUITE_SECTIONS: dict[str, Callable[[Sequence[Row]], list[Section]]] = {
    "fourier": studies.fourier_sections,
    "naive": studies.naive_sections,
    "spectral": studies.spectral_sections,
    "swap": studies.swap_sections,
    "kernels": studies.kernels_sections,
}


def summary(run: dict[str, Any], rows: Sequence[Row]) -> Section:
    """The one table that a terminal shows of a run."""
    if run["suite"] not in SUITE_SECTIONS:
        return summary_section(rows)
    found = [section for section in SUITE_SECTIONS[run["suite"]](rows) if section.table]
    return found[0] if found else Section("Summary", table=Table(["mixer"], []))


def summary_section(rows: Sequence[Row]) -> Section:
    """One table for the terminal and the README: forward times, training times and accuracy."""
    plain = comparable(rows)
    forward, backward = (Sweep(plain, direction) for direction in DIRECTIONS)
    lengths = sorted({*forward.seq_lens, *backward.seq_lens})
    if not lengths:
        return Section("Summary", table=Table(["mixer"], []))
    shown = [n for n in lengths if n in (lengths[0], 512, lengths[-1])]
    longest = lengths[-1]
    accuracy = {one.mixer.partition("(")[0]: one.accuracies for one in trainings(rows)}
    body = []
    for label in dict.fromkeys([*forward.labels, *backward.labels]):
        memory = backward.ok(label, longest)
        against = forward.speedup(label, FUSED, longest)
        trained = accuracy.get("attention" if label == FUSED else label, ())
        body.append(
            [
                label,
                *(_time(forward, label, n) for n in shown),
                "1x" if label == FUSED else f"{tables.number(against.value)}x" if against else "-",
                _time(backward, label, longest),
                tables.number(memory["peak_mb"]) if memory else "-",
                f"{100 * sum(trained) / len(trained):.1f} %" if trained else "-",
            ]
        )
    case = next(row for row in plain if row["direction"] in DIRECTIONS)
    return Section(
        "Summary",
        [
            f"Medians in ms: forward at N tokens, then forward + backward at N = {longest:,} with "
            f"its peak memory. vs fused: forward at N = {longest:,} against fused attention. "
            f"digits: held-out accuracy, mean over seeds. Batch {case['batch']}, width "
            f"{case['dim']}, {case['num_heads']} heads, {case['dtype']}, {case['device']}."
        ],
        Table(
            [
                "mixer",
                *(f"N={n:,}" for n in shown),
                "vs fused",
                "fwd+bwd",
                "peak MB",
                "digits",
            ],
            body,
        ),
    )


def _time(sweep: Sweep, label: str, seq_len: int) -> str:
    row = sweep.row(label, seq_len)
    if row is None:
        return "-"
    return tables.number(row["median_ms"]) if row["status"] == "ok" else row["status"].upper()


def _bullets(sentences: Sequence[str]) -> list[str]:
    return [f"- {sentence}" for sentence in sentences]


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
    failed = [row for row in rows if row["status"] != "ok"]
    return Section(
        "Cases that did not finish" if failed else "",
        table=Table(
            ["case", "status", "reason"],
            [
                [
                    f"{row['label']}, {row['direction']}, N = {row['seq_len']:,}",
                    row["status"],
                    row.get("error", ""),
                ]
                for row in failed
            ],
        )
        if failed
        else None,
    )


def _machine(run: dict[str, Any]) -> Section:
    machine, ceilings = run["machine"], run["ceilings"]
    facts = [
        ["command", run["command"]],
        ["started, finished (UTC)", f"{run['started']}, {run['finished'] or 'not finished'}"],
        [
            "processor",
            f"{machine['cpu']} ({machine['cpu_capability']}), "
            f"{machine['cores']} cores, {run['threads']} threads",
        ],
        *(
            [["GPU", f"{machine['gpu']}, {machine['gpu_memory_gb']} GB"]]
            if "gpu" in machine
            else []
        ),
        ["copy", f"{tables.number(ceilings['copy_gb_per_s'])} GB/s, bytes read and written"],
        [
            "matmul",
            f"{tables.number(ceilings['matmul_gflop_per_s'])} GFLOP/s, {ceilings['matmul_dtype']}",
        ],
        [
            "versions",
            ", ".join(
                [f"Python {machine['python']}", f"flashmix {machine['flashmix']}"]
                + [f"{name} {version}" for name, version in machine["packages"].items()]
            ),
        ],
        ["commit", machine["commit"] or "unknown"],
        ["seed", str(run["seed"])],
    ]
    return Section(
        "Machine",
        ["Measured ceilings: what no implementation here can beat."],
        Table(["what", "value"], facts),
    )


def _method(run: dict[str, Any], rows: Sequence[Row]) -> Section:
    return Section(
        "Method",
        [
            "Each case runs in a worker process with a time limit. The cases of one table column "
            "are timed in turn (A B C A B C ...), so that drift meets all alike, after a warm-up "
            "that ends when two calls agree. Raw samples, with batch, width and heads of each "
            "case, are in results.jsonl.",
            *_gpu_time(rows),
            _repeatability(rows),
            *run.get("notes", ()),
        ],
    )


def _gpu_time(rows: Sequence[Row]) -> list[str]:
    timed = [row for row in rows if row["device"] == "cuda" and "samples_ms" in row]
    if not timed:
        return []
    if any("host_ms" in row for row in timed):
        return ["Times are the GPU's alone, the L2 cache flushed before each call."]
    return ["Times include what Python takes to issue a call, where that is more than the GPU's."]


def _repeatability(rows: Sequence[Row]) -> str:
    drift = next((row["drift"] for row in rows if "drift" in row), None)
    if drift is None:
        return "Nothing was measured twice: intervals know the spread within one measurement only."

    def change(name: str) -> str:
        return f"{100 * math.expm1(1.96 * math.sqrt(2) * drift[name]):.1f} %"

    return (
        f"{drift['cases']} cases were measured again at the end, in a fresh process: 95 % of their "
        f"times moved by less than {change('time')}, 95 % of the ratios of cases timed in turn by "
        f"less than {change('ratio')}. All intervals are that much wider than their samples alone "
        "would have them."
    )


def _plain(text: str) -> str:
    """``text`` as one line that holds no HTML: mixers and errors are whatever somebody wrote."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")


def markdown_table(table: Table) -> str:
    """``table`` in Markdown."""

    def line(cells: Sequence[str]) -> str:
        escaped = (_plain(cell).replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
        return "| " + " | ".join(escaped) + " |"

    ruler = "|---|" + "---:|" * (len(table.columns) - 1)
    return "\n".join([line(table.columns), ruler, *(line(row) for row in table.rows)])


def markdown(run: dict[str, Any], rows: Sequence[Row]) -> str:
    """The report in Markdown."""
    parts = [f"# flashmix bench {run['suite']}"]
    if not rows:
        parts.append("No case has finished yet.")
    else:
        parts.append(_headline(run, rows))
        for section in sections(run, rows):
            parts.append(f"## {section.title}")
            parts += ["\n".join(map(_plain, section.text))] if section.text else []
            parts += [markdown_table(section.table)] if section.table else []
    return "\n\n".join(parts) + "\n"


def _headline(run: dict[str, Any], rows: Sequence[Row]) -> str:
    """Shape, dtype and device of what the run timed."""
    timed = [row for row in rows if row["direction"] not in ("train", "facts")] or rows

    def values(name: str) -> str:
        found = sorted({row[name] for row in timed})
        return ", ".join(map(str, found)) if len(found) <= 4 else f"{found[0]} to {found[-1]}"

    machine = run["machine"]
    return (
        f"Batch {values('batch')}; width {values('dim')}; heads {values('num_heads')}; "
        f"{values('dtype')}; on {machine.get('gpu', machine['cpu'])}. {len(rows)} cases."
    )


def write_report(folder: Path) -> Path:
    """Write report.md of the run in ``folder`` and return its path."""
    path = folder / REPORT_FILE
    write_whole(path, markdown(read_run(folder), read_rows(folder)))
    return path

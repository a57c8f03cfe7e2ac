"""Reports say what the rows say, and no row breaks a report."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_helpers import make_row, make_run, make_training
from flashmix.report import markdown, markdown_table, sections, write_report
from flashmix.report import summary as summary_table
from flashmix.report.analysis.timings import FUSED, NAIVE
from flashmix.report.tables import Table, number
from report_helpers import (
    CASES,
    HOSTILE,
    LENGTHS,
    STATUSES,
    make_any,
    power_law,
    whole_run,
    whole_suite,
    write_run,
)


def report(rows, **run) -> str:
    return markdown(make_run(**run), rows)


def tables_of(text: str) -> list[list[str]]:
    """The lines of each table."""
    return [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]


def columns(line: str) -> int:
    """Cells of a line of a table; an escaped bar parts none."""
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_a_run_without_rows_gives_a_readable_report():
    text = report([])
    assert text.startswith("# flashmix bench quick")
    assert "No case has finished yet" in text


def test_every_table_is_whole():
    found = tables_of(report(whole_run()))
    assert len(found) > 8
    for lines in found:
        assert len(lines) > 2, f"no rows under {lines[0]}"
        assert len({columns(line) for line in lines}) == 1, lines


def test_every_section_has_a_title_and_something_below_it():
    for section in sections(make_run(), whole_run()):
        assert section.title
        assert section.text or (section.table and section.table.rows)


def test_the_report_holds_machine_command_and_seed():
    text = report(whole_run(), command="flashmix bench quick --seed 3", seed=3)
    for fact in ("a processor", "flashmix bench quick --seed 3", "torch 2.11.0", "10.0 GB/s"):
        assert fact in text
    assert "not finished" in text


@pytest.mark.parametrize("status", ["oom", "timeout", "crashed", "error"])
def test_a_failed_row_appears_with_its_status_and_reason(status):
    rows = [*whole_run(), make_row("topk", 512, status=status)]
    text = report(rows)
    assert f"it was {status}" in text
    assert re.search(rf"\| topk, forward, N = 512 \| {status} \|", text)
    (times,) = (lines for lines in tables_of(text) if "copy" in lines[2])
    assert any(status.upper() in line for line in times if line.startswith("| topk"))


@pytest.mark.parametrize("name", HOSTILE)
def test_text_of_a_run_cannot_break_out_of_the_report(name):
    rows = [make_row(name, n) for n in LENGTHS] + power_law(FUSED, 1, 1)
    rows += [make_row(name, 2048, status="error", error=name), make_training(name, 0.9)]
    rows.append(make_training("attention", 0.5))
    text = report(rows, command=name)
    assert "<script" not in text
    assert "<b>" not in text
    for lines in tables_of(text):
        assert len({columns(line) for line in lines}) == 1, lines
    assert html.escape(name.split("\n")[0], quote=False).split("|")[0] in text.replace(">", "&gt;")


def test_a_cell_is_one_cell_whatever_it_holds():
    text = markdown_table(Table(["a", "b"], [["x|y", "1\n2"], ["\\|", "<i>"]]))
    assert {columns(line) for line in text.splitlines() if "\\\\" not in line} == {2}
    assert len(text.splitlines()) == 4
    assert "<i>" not in text


@given(
    value=st.floats(min_value=1e-9, max_value=1e12, allow_nan=False) | st.just(0.0),
)
def test_a_number_shows_three_significant_digits(value):
    shown = float(number(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.5e-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_breaks_no_table(value):
    assert number(value)


@pytest.mark.parametrize("suite", CASES)
@settings(max_examples=8)
@given(data=st.data())
def test_no_row_breaks_a_report(suite, data):
    """Any part of any suite, each row with any status."""
    cases = CASES[suite].cases
    statuses = st.sampled_from(data.draw(st.sampled_from([STATUSES, ["ok"], STATUSES[1:]])))
    random = data.draw(st.randoms(use_true_random=False))
    rows = [
        make_any(case, data.draw(statuses), random.choice([0.5, 1.0, 7.0]), random.choice([0, 3.0]))
        for case in cases[: random.choice([1, 2, 5, 40])]
    ]
    text = report(rows, suite=suite)
    for row in rows:
        if row["status"] != "ok":
            assert f"it was {row['status']}" in text
    for lines in tables_of(text):
        assert len(lines) > 2
        assert len({columns(line) for line in lines}) == 1, lines
    assert summary_table(make_run(suite=suite), rows).title


@pytest.mark.parametrize("suite", CASES)
def test_a_whole_run_of_every_suite_gives_a_report(suite):
    rows = whole_suite(suite)
    text = report(rows, suite=suite)
    for label in {row["label"] for row in rows} - {"copy"}:
        assert label.partition("(")[0] in text
    assert "Cases that did not finish" not in text


def test_the_theoretical_ratio_is_n_over_its_logarithm():
    rows = [make_row(one, n) for one in ("spectral", NAIVE, FUSED) for n in (256, 1024)]
    (speed,) = (lines for lines in tables_of(report(rows, suite="spectral")) if "log2" in lines[0])
    assert [line.split(" | ")[-1] for line in speed[2:]] == ["32x |", "102x |"]


def test_a_report_is_written_beside_its_rows(tmp_path):
    path = write_report(write_run(tmp_path, whole_run()))
    assert path == tmp_path / "report.md"
    assert path.read_text() == report(whole_run())

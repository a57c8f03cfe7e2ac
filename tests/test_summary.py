"""The summary and the recommendations: one line for each variant, and what the rows favour."""

from __future__ import annotations

import pytest

from bench_helpers import make_row, make_run, make_sweep, make_training
from flashmix.report import sections, summary_section
from flashmix.report.analysis.timings import FUSED
from flashmix.report.sections.fourier import recommendation_section
from report_helpers import whole_suite


def cells(rows):
    """(times, accuracy) of the summary by label."""
    return {line[0]: (line[1:-1], line[-1]) for line in summary_section(rows).table.rows}


def test_variants_of_a_mixer_keep_their_own_accuracy():
    rows = make_sweep(FUSED, {128: 1.0, 256: 2.0})
    for window, accuracy in ((16, 0.9), (64, 0.5)):
        name = f"local(window={window})"
        rows += make_sweep(name, {128: float(window), 256: 2.0 * window})
        rows.append(make_training(name, accuracy))
    found = cells(rows)
    assert found["local(window=16)"][1] == "90.0 %"
    assert found["local(window=64)"][1] == "50.0 %"
    assert found["local(window=16)"][0][0] == "16.0"
    assert found["local(window=64)"][0][0] == "64.0"


def test_the_only_variant_that_was_trained_stands_for_its_mixer():
    rows = [*make_sweep("local", {128: 1.0}), make_training("local(window=16)", 0.9)]
    assert cells(rows)["local"][1] == "90.0 %"


def test_of_several_trained_variants_none_stands_for_the_mixer():
    rows = make_sweep("local", {128: 1.0})
    rows += [make_training(f"local(window={window})", 0.9) for window in (16, 64)]
    assert cells(rows)["local"][1] == "-"


def test_fused_attention_has_the_accuracy_of_attention():
    rows = [*make_sweep(FUSED, {128: 1.0}), make_training("attention", 0.7)]
    assert cells(rows)[FUSED][1] == "70.0 %"


def recommended(rows):
    return {line[0]: (line[1], line[2]) for line in recommendation_section(rows).table.rows}


def test_the_fastest_is_recommended_with_its_lead():
    rows = [make_row("fourier", 512, 2.0, peak_mb=3.0), make_row(FUSED, 512, 6.0, peak_mb=1.0)]
    found = recommended(rows)
    use, because = found["speed, inference, float32"]
    assert use == "fourier"
    assert because.startswith("3.00x (3.00 to 3.00) as fast as attention (fused)")
    assert found["memory, inference, float32"][0] == FUSED
    assert because.rows == tuple(rows)


def test_a_tie_recommends_either():
    rows = [make_row("fourier", 512, [1.0, 1.2, 0.9, 1.1]), make_row(FUSED, 512, [1.1, 1.0, 1.2])]
    use, because = recommended(rows)["speed, inference, float32"]
    assert " or " in use
    assert because.startswith("no significant difference")


def test_nothing_is_recommended_where_only_one_was_measured():
    rows = [make_row("fourier", 512), make_row(FUSED, 512, status="oom")]
    assert recommendation_section(rows).table.rows == []


@pytest.mark.parametrize(("suite", "expected"), [("fourier", True), ("quick", False)])
def test_the_fourier_report_alone_recommends(suite, expected):
    titles = [one.title for one in sections(make_run(suite=suite), whole_suite(suite))]
    assert ("Recommendations" in titles) is expected

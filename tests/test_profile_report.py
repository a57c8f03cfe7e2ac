"""Suite profile's report: the ceiling first, nothing absent in silence, advice made from rows."""

import dataclasses

import pytest

from bench_helpers import make_run
from flashmix.bench import Grid, build_suite
from flashmix.bench.case import MODE_LABELS
from flashmix.bench.profiling import catalogue
from flashmix.report import markdown, sections, statements
from flashmix.report.analysis import profile
from flashmix.report.analysis.compare import compare
from flashmix.report.build import findings, summary
from report_helpers import make_any

BERT = '{"hidden_size": 16, "intermediate_size": 24, "model_type": "bert", '
CONFIG = BERT + '"num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 512}'
GRID = Grid(
    models=("mine",),
    config=CONFIG,
    batch=4,
    seq_len=128,
    mixers=("fnet", "local"),
    token_lengths=(32, 64, 96, 128),
    seq_lens=(64, 256),
)
INT8 = MODE_LABELS["int8"]
SHARES = {"mixing": 0.25, "projections": 0.25, "mlp": 0.375, "rest": 0.125}
TIMES = {"vanilla SDPA": 100.0, "vanilla eager": 120.0, "mixing free": 60.0}


def profiled(grid=GRID, failed=(), **times):
    """Rows of a suite: the times named (underscores for what a name cannot hold), else 80 ms."""
    given = {**TIMES, **{name.replace("_", " "): value for name, value in times.items()}}
    rows = []
    for case in build_suite("profile", grid).cases:
        label = case.label.removesuffix(", unpadded")
        lost = label in failed or case.label in failed
        row = make_any(case, "error" if lost else "ok", given.get(label, 80.0), 2.0)
        if not lost and case.mode in ("eager", "int8"):
            row["parts"] = SHARES
        rows.append(row)
    return rows


def said(rows, *words):
    return [one for one in statements(rows) if all(word in one for word in words)]


def test_the_ceiling_stands_first_with_its_interval():
    first = statements(profiled())[0]
    assert "mine [4, 128], 38 % padding" in first
    assert "if mixing were free" in first and "1.67x (1.67 to 1.67)" in first
    assert findings(profiled())[0].figure == "1.67x"


def test_a_ceiling_that_the_intervals_do_not_bear_out_is_not_claimed():
    rows = profiled()
    for row in rows:
        if row["label"] == "mixing free":
            row["samples_ms"] = [40.0, 60.0, 130.0]
    assert said(rows, "free mixing and vanilla SDPA show no significant difference")
    assert not said(rows, "if mixing were free")
    assert said(profiled(mixing_free=125.0), "free mixing is slower than vanilla SDPA", "0.800x")


def test_the_fastest_swap_is_compared_with_the_fastest_that_needs_no_training():
    loses = said(profiled(PyTorch_int8=70.0, fnet=75.0), "loses to PyTorch int8")
    assert loses and all("0.933x" in one for one in loses)
    wins = said(profiled(PyTorch_int8=90.0, fnet=65.0), "fnet", "best without")
    assert wins and not said(profiled(PyTorch_int8=90.0, fnet=65.0), "loses to")


def test_what_beats_the_ceiling_without_training_is_said():
    rows = profiled(PyTorch_int8=50.0)
    assert said(rows, "PyTorch int8 beats even free mixing", "0.833x")
    assert not said(profiled(), "beats even free mixing")


def test_a_swap_faster_than_free_mixing_is_said_to_be_impossible():
    assert said(profiled(fnet=50.0), "fnet", "cannot be", "1.20x")
    assert not said(profiled(fnet=61.0), "cannot be")


def test_advice_names_the_fastest_and_what_must_be_trained():
    (first,) = said(profiled(PyTorch_int8=62.5), "Do first")
    assert "Do first: PyTorch int8" in first and "38 % (38 to 38)" in first
    assert "quantize_dynamic" in first
    assert said(profiled(PyTorch_int8=62.5), "not worth its training", "0.781x")
    (then,) = said(profiled(fnet=70.0), "Then, if you can train")
    assert "fnet" in then and "flashmix finetune --model mine --mixers 'attention; fnet'" in then
    slow = dict.fromkeys((*MODE_LABELS.values(), "attention"), 130.0)
    (nothing,) = said(profiled(**slow), "Do first")
    assert "nothing" in nothing


def test_nothing_that_was_not_measured_is_absent_in_silence():
    labels = {row["label"] for row in profiled()}
    for label in labels - {"vanilla SDPA"}:
        rows = profiled(failed=(label,))
        reason = next(row["error"] for row in rows if row["status"] != "ok")
        assert said(rows, "Not measured", label, reason), label
        assert label in markdown(make_run(suite="profile"), rows)


def test_without_the_baseline_nothing_is_compared():
    rows = profiled(failed=("vanilla SDPA",))
    assert said(rows, "the vanilla model was not measured")
    assert not said(rows, "Do first") and not findings(rows)


def test_a_model_without_fused_attention_is_compared_with_its_eager_one():
    config = CONFIG.replace("{", '{"attn_implementation": "eager", ', 1)
    rows = profiled(dataclasses.replace(GRID, config=config))
    assert not any(row["impl"] == "sdpa" for row in rows)
    assert "2.00x" in statements(rows)[0] and "as fast as vanilla eager" in statements(rows)[0]
    assert said(rows, "Do first") and not said(rows, "vanilla SDPA")


def test_a_ceiling_that_was_not_measured_is_estimated_from_the_parts_and_says_so():
    rows = profiled(failed=("mixing free",))
    first = statements(rows)[0]
    assert "not measured" in first and "50 %" in first and "2.00x" in first
    assert "without interval" in first


def test_the_length_from_which_a_swap_pays_is_found():
    rows = profiled()
    for row in rows:
        free, int8 = row["label"] == "mixing free", row["label"] == INT8
        if row["lengths"] == "full" and row["direction"] == "inference" and (free or int8):
            row["median_ms"] = {64: (95.0, 70.0), 256: (40.0, 70.0)}[row["seq_len"]][int8]
            row["samples_ms"] = [row["median_ms"]] * 3
    (against,) = said(rows, "Full batches", "faster than PyTorch int8: N = ")
    at = profile.ceiling_passes(rows, INT8).at.value
    assert 64 < at < 256 and f"{round(at):,}" in against
    assert said(rows, "1.25x as fast as vanilla SDPA or faster: N = ")


def test_the_cost_of_a_million_texts_is_that_of_their_time():
    rows = profiled()
    run = make_run(suite="profile", grid={"price_per_hour": 0.5})
    table = next(s.table for s in sections(run, rows) if s.table and s.title.startswith("Infer"))
    assert table.columns[-1].startswith("cost")
    line = next(line for line in table.rows if line[0] == "vanilla SDPA")
    assert float(line[-1]) == pytest.approx(0.5 * 1e6 / 4 * 100e-3 / 3600, rel=1e-2)
    without = summary(make_run(suite="profile", grid={}), rows).table
    assert without.columns == table.columns[:-1]


def test_every_line_of_a_table_has_its_columns():
    for price in (None, 0.5):
        run = make_run(suite="profile", grid={"price_per_hour": price})
        for section in sections(run, profiled(failed=("fnet", INT8))):
            for line in section.table.rows if section.table else ():
                assert len(line) == len(section.table.columns), section.title


def test_bars_are_made_of_parts_that_sum_to_their_row():
    pytest.importorskip("altair")
    from flashmix.report.charts import charts

    rows = [{**row, "line": i} for i, row in enumerate(profiled(failed=("fnet",)), 1)]
    found = {chart.name: chart for chart in charts(rows)}
    assert set(found) == {"profile-inference", "profile-inference-b1"}
    for name, chart in found.items():
        points = [one for data in chart.spec["datasets"].values() for one in data]
        bars = [one for one in points if "rank" in one]
        group = next(
            g
            for g in profile.compared(rows)
            if f"profile-{g.direction}" in (name, name.replace("-b1", "_b1"))
        )
        assert {one["what"] for one in bars} == {row["label"] for row in group.ok}
        for row in group.ok:
            parts = [one for one in bars if one["what"] == row["label"]]
            assert sum(one["ms"] for one in parts) == pytest.approx(row["median_ms"])
            assert {one["rows"] for one in parts} == {str(row["line"])}


def test_a_profile_is_compared_with_another_case_by_case():
    rows = profiled()
    slower = profiled(fnet=160.0)
    found = compare(rows, slower)
    assert len(found.changes) == len(rows) and not found.only_before and not found.only_after
    assert {change.before["mixer"] for change in found.significant} == {"fnet"}


def test_models_of_one_name_but_other_sizes_are_other_cases():
    other = dataclasses.replace(
        GRID, config=CONFIG.replace('"hidden_size": 16', '"hidden_size": 32')
    )
    assert catalogue.sizes_of(other.config).dim == 32
    assert not compare(profiled(), profiled(other)).changes

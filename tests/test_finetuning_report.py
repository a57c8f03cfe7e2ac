"""What is said of fine-tuned models comes from their rows, however few fields those have."""

from __future__ import annotations

import pytest

from flashmix.report.analysis.training import outcomes
from flashmix.report.build import findings
from flashmix.report.charts import charts
from flashmix.report.charts.training import pareto
from report_helpers import finetuned_run, make_finetuned


def drawn(rows):
    return {chart.name: chart for chart in charts(rows)}


def values(chart):
    return [one for data in chart.spec["datasets"].values() for one in data]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 1), (2, 2), (3, 3)], [0, 1, 2]),
        ([(1, 3), (2, 2), (3, 1)], [0]),
        ([(1, 1), (2, 1), (3, 2)], [0, 2]),
        ([(1, 1), (1, 2)], [1]),
        ([(3, 5), (1, 1), (2, 0.5)], [1, 0]),
        ([], []),
    ],
)
def test_the_front_holds_what_nothing_beats_in_both(points, front):
    assert pareto(points) == front


def test_seeds_of_one_model_are_one_outcome():
    found = {one.mixers: one for one in outcomes(finetuned_run())}
    assert len(found["attention"].ok) == 2
    assert found["attention"].mean("infer_ms") == pytest.approx(4.05)
    assert [row["status"] for row in found["fourier"].failed] == ["oom"]


def test_mixers_as_a_list_are_the_same_as_text():
    rows = [make_finetuned("fnet,attention", 0.8), make_finetuned("x", 0.8, 1)]
    rows[1]["mixers"] = ["fnet", "attention"]
    assert [len(one.ok) for one in outcomes(rows)] == [2]


def test_equal_training_times_are_no_finding():
    rows = [make_finetuned("attention", 0.8), make_finetuned("fnet", 0.9, infer_ms=1.0)]
    assert [one.figure for one in findings(rows)] == ["89.0 %", "3.00x"]


def test_findings_name_the_most_accurate_and_the_fastest():
    found = findings(finetuned_run())
    assert [one.figure for one in found] == ["89.0 %", "2.02x", "1.50x"]
    assert "spectral,attention" in found[0].text
    assert "fnet, with 93.0 % of its accuracy" in found[1].text


def test_every_chart_of_fine_tuning_is_drawn():
    assert {"accuracy-infer", "accuracy-train", "curves-loss", "curves-val-accuracy"} <= set(
        drawn(finetuned_run())
    )


def test_the_caption_names_the_front():
    text = drawn(finetuned_run())["accuracy-infer"].text
    assert text.endswith("(Pareto front): fnet, spectral,attention.")


def test_the_best_epoch_is_ringed_once_for_each_seed():
    spec = drawn(finetuned_run())["curves-val-accuracy"].spec
    (ring,) = (one for one in spec["layer"] if one["mark"].get("filled") is False)
    best = spec["datasets"][ring["data"]["name"]]
    assert len(best) == 8
    assert {point["x"] for point in best} == {2}


@pytest.mark.parametrize("absent", ["history", "infer_ms", "train_seconds", "best_epoch", "f1",
                                    "test_accuracy", "peak_memory_mb", "params", "model", "seed",
                                    "status", "val_accuracy"])  # fmt: skip
def test_an_absent_field_breaks_nothing(absent):
    rows = [{k: v for k, v in row.items() if k != absent} for row in finetuned_run()]
    assert findings(rows)
    drawn(rows)


def test_no_point_is_drawn_of_what_failed():
    rows = finetuned_run()
    assert not [v for v in values(drawn(rows)["accuracy-infer"]) if v.get("label") == "fourier"]

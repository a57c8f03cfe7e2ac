"""Charts: each mark stands for rows, labels do not overlap, one definition gives every picture."""

from __future__ import annotations

import itertools
import json
import re
import sys

import altair
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench_helpers import make_row
from flashmix.errors import MissingDependencyError
from flashmix.report import write_figures, write_page
from flashmix.report.analysis.timings import FUSED, NAIVE
from flashmix.report.charts import align, charts
from flashmix.report.write import picture_spec
from flashmix.visualize import theme
from flashmix.visualize.chart import log_domain, log_ticks, spread
from report_helpers import CASES, HOSTILE, LENGTHS, power_law, whole_run, whole_suite, write_run


def numbered(rows):
    return [{**row, "line": line} for line, row in enumerate(rows, 1)]


def drawn(rows):
    return {chart.name: chart for chart in charts(numbered(rows))}


def points(chart):
    return [one for data in chart.spec["datasets"].values() for one in data if "rows" in one]


@pytest.fixture(scope="module")
def whole():
    return drawn(whole_run())


def test_a_sweep_gives_every_chart(whole):
    for direction in ("forward", "forward-backward"):
        for kind in ("time", "memory", "speedup-fused", "growth"):
            assert f"{kind}-{direction}" in whole
    assert {"speedup-naive-forward", "parameters", "accuracy-digits"} <= set(whole)


def test_distance_to_the_floor_is_drawn_where_the_floor_was_measured():
    rows = power_law("fnet", 4, 1, floor_ms=2.0)
    (first, *_) = points(drawn(rows)["copy-forward"])
    assert first["y"] == 4 * LENGTHS[0] / 2.0
    assert "copy-forward" not in drawn(power_law("fnet", 4, 1))


def test_each_mark_names_the_rows_it_stands_for(whole):
    rows = numbered(whole_run())
    for point in points(whole["time-forward"]):
        if "sentence" in point:
            continue
        (row,) = (rows[int(line) - 1] for line in point["rows"].split(", "))
        assert (row["label"], row["seq_len"]) == (point["label"], point["n"])
        assert row["median_ms"] == point["y"]
    for point in points(whole["speedup-fused-forward"]):
        if "sentence" in point:
            continue
        ours, theirs = (rows[int(line) - 1] for line in point["rows"].split(", "))
        assert theirs["label"] == FUSED
        assert theirs["median_ms"] / ours["median_ms"] == pytest.approx(point["y"])


def test_a_crossover_is_marked_where_the_lines_meet(whole):
    (mark,) = (one for one in points(whole["speedup-fused-forward"]) if "sentence" in one)
    assert mark["label"] == "fnet"
    assert mark["n"] == pytest.approx(400)  # 4 N = N ** 2 / 100
    (ring,) = (one for one in points(whole["time-forward"]) if "sentence" in one)
    assert ring["y"] == pytest.approx(4 * 400)


def test_the_fitted_slope_stands_after_the_name(whole):
    names = {one["text"] for data in whole["time-forward"].spec["datasets"].values()
             for one in data if "at" in one}  # fmt: skip
    assert {"fnet · 1.00", f"{NAIVE} · 2.00", f"{FUSED} · 2.00"} <= names


def test_what_did_not_finish_is_marked_at_the_top():
    rows = [*power_law("fnet", 4, 1), make_row("fnet", 2048, status="oom")]
    (cross,) = (one for one in points(drawn(rows)["time-forward"]) if "status" in one)
    assert (cross["n"], cross["status"], cross["rows"]) == (2048, "oom", "5")


@pytest.mark.parametrize("suite", CASES)
def test_a_whole_run_of_every_suite_is_drawn(suite):
    found = drawn(whole_suite(suite))
    assert found
    for chart in found.values():
        altair.LayerChart.from_dict(dict(chart.spec)).to_dict(validate=True)
        assert "(" in json.dumps([chart.title, chart.spec]), "an axis without a unit"
        for point in points(chart):
            assert point["rows"], chart.name


@pytest.mark.parametrize("status", ["oom", "error"])
def test_rows_without_any_measurement_draw_nothing(status):
    assert drawn([make_row("fnet", n, status=status) for n in LENGTHS]) == {}


def test_charts_of_several_runs_share_their_axes():
    runs = [power_law("fnet", factor, 1) for factor in (1, 100)]
    found = align([charts(numbered(rows)) for rows in runs])
    domains = []
    for one in found:
        (chart,) = (chart for chart in one if chart.name == "time-forward")
        (y,) = re.findall(r'"y": .*?"domain": \[(.*?)\]', json.dumps(chart.spec["layer"][0]))
        domains.append(y)
    assert domains[0] == domains[1]


def test_a_mixer_has_its_colour_in_every_chart(whole):
    for chart in whole.values():
        if "fnet" in chart.series:
            assert theme.tone("fnet").light in json.dumps(chart.spec)


# Places


@given(wanted=st.lists(st.floats(-100, 100), min_size=1, max_size=12), gap=st.floats(0.1, 10))
def test_labels_never_overlap_and_stay_inside(wanted, gap):
    low, high = -120.0, 120.0
    found = spread(wanted, gap, low, high)
    ordered = sorted(found)
    least = min(gap, (high - low) / max(1, len(wanted) - 1))
    assert all(b - a >= least * (1 - 1e-6) for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= low - 1e-6
    assert ordered[-1] <= high + 1e-6


@given(wanted=st.lists(st.floats(-100, 100), min_size=1, max_size=12, unique=True))
def test_labels_keep_the_order_of_what_they_name(wanted):
    found = spread(wanted, 3.0, -120.0, 120.0)
    assert sorted(range(len(wanted)), key=found.__getitem__) == sorted(
        range(len(wanted)), key=wanted.__getitem__
    )


def test_labels_with_room_stay_where_they_are():
    assert spread([1.0, 50.0, 20.0], 5.0, 0.0, 100.0) == [1.0, 50.0, 20.0]


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_an_axis_holds_all_values_and_at_least_three_ticks(found):
    low, high = log_domain(found)
    assert low < min(found) and max(found) < high
    ticks = log_ticks(low, high)
    assert all(low <= tick <= high for tick in ticks)
    if high / low > 10:
        assert len(ticks) >= 3


# Pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_figures(write_run(tmp_path_factory.mktemp("run"), whole_run()))


def test_each_chart_is_a_picture_in_light_and_dark(pictures, whole):
    names = {path.name for path in pictures}
    assert names == {f"{name}{kind}" for name in whole for kind in (".svg", "-dark.svg", ".png")}
    assert all(path.parent.name == "figures" for path in pictures)


def test_pictures_are_whole(pictures):
    for path in pictures:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")
        else:
            assert content.startswith(b"<svg") and content.rstrip().endswith(b"</svg>")


def test_a_dark_picture_is_dark(whole):
    dark = json.dumps(picture_spec(whole["time-forward"], "dark"))
    for tone in (theme.PAPER, theme.INK, *theme.mixers().values()):
        assert tone.light not in dark
    assert theme.PAPER.dark in dark


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_text_in_a_picture(name, tmp_path):
    rows = [make_row(name, n, float(n)) for n in LENGTHS]
    for path in write_figures(write_run(tmp_path, rows)):
        if path.suffix == ".svg":
            assert "<script" not in path.read_text()


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_a_missing_package_is_one_sentence_with_the_command(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    folder = write_run(tmp_path, whole_run())
    for write in (write_figures, lambda folder: write_page([folder])):
        with pytest.raises(MissingDependencyError, match=r"pip install 'flashmix\[report\]'"):
            write(folder)
    assert not (folder / "report.html").exists()

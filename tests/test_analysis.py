"""Ratios, growth, crossovers, statements and claims: known rows, known answers."""

from __future__ import annotations

import pytest

from bench_helpers import make_row, make_sweep, make_training
from flashmix.bench.stats import Interval
from flashmix.report import statements
from flashmix.report.analysis.timings import FUSED, NAIVE, Sweep, find_crossover
from flashmix.report.analysis.training import trainings
from flashmix.report.build import published_verdicts
from flashmix.report.sections.claims import Published
from report_helpers import LENGTHS, power_law


def exactly(value: float) -> Interval:
    return Interval(value, value, value)


def ratios(*intervals):
    """Ratios at 100, 200, 400, ...: numbers are exact, pairs are (low, high)."""
    found = []
    for index, one in enumerate(intervals):
        low, high = one if isinstance(one, tuple) else (one, one)
        found.append((100 * 2**index, Interval((low * high) ** 0.5, low, high)))
    return found


# Ratios, growth, exponents


def test_speedup_is_how_many_times_faster():
    sweep = Sweep([make_row("fnet", 128, 2.0), make_row(FUSED, 128, 6.0)], "forward")
    assert sweep.speedup("fnet", FUSED, 128) == exactly(3.0)
    assert sweep.speedup(FUSED, "fnet", 128).value == pytest.approx(1 / 3)


def test_there_is_no_speedup_without_both_measurements():
    rows = [make_row("fnet", 128), make_row(FUSED, 128, status="oom"), make_row("fnet", 256)]
    sweep = Sweep(rows, "forward")
    assert sweep.speedup("fnet", FUSED, 128) is None
    assert sweep.speedup("fnet", FUSED, 256) is None
    assert sweep.speedup("fnet", NAIVE, 128) is None


def test_directions_are_kept_apart():
    rows = [
        make_row("fnet", 128, 1.0),
        make_row("fnet", 128, 5.0, direction="forward_backward"),
    ]
    assert Sweep(rows, "forward").ok("fnet", 128)["median_ms"] == 1.0
    assert Sweep(rows, "forward_backward").ok("fnet", 128)["median_ms"] == 5.0


@pytest.mark.parametrize("exponent", [1, 1.5, 2])
def test_an_exact_power_law_gives_its_exponent(exponent):
    found = Sweep(power_law("fnet", 1e-3, exponent), "forward").exponent("fnet")
    for bound in (found.value, found.low, found.high):
        assert bound == pytest.approx(exponent)


@pytest.mark.parametrize("exponent", [1, 2])
def test_growth_per_doubling_of_an_exact_power_law(exponent):
    growth = Sweep(power_law("fnet", 1e-3, exponent), "forward").growth("fnet")
    assert [n for n, _ in growth] == [256, 512, 1024]
    assert [ratio.value for _, ratio in growth] == pytest.approx([2**exponent] * 3)


def test_growth_takes_doublings_only():
    sweep = Sweep(make_sweep("fnet", {128: 1.0, 300: 2.0, 600: 4.0, 601: 4.0}), "forward")
    assert [(n, ratio.value) for n, ratio in sweep.growth("fnet")] == [(600, 2.0)]


def test_an_exponent_needs_three_lengths():
    assert Sweep(power_law("fnet", 1, 1, (128, 256)), "forward").exponent("fnet") is None


def test_an_exponent_of_noisy_times_has_an_interval_around_it():
    rows = [make_row("fnet", n, [n * one for one in (0.9, 1.0, 1.1, 1.0, 0.95)]) for n in LENGTHS]
    found = Sweep(rows, "forward").exponent("fnet")
    assert found.value == pytest.approx(1)
    assert found.low < 1 < found.high


# Crossovers


def test_faster_everywhere_is_always():
    assert find_crossover(ratios(1.5, (1.01, 3), 2)).kind == "always"


def test_slower_everywhere_is_never():
    assert find_crossover(ratios(0.5, 0.9, (0.2, 0.99))).kind == "never"


def test_a_crossing_is_interpolated_on_log_log():
    found = find_crossover(ratios(0.25, 0.5, 2, 4))
    assert found.kind == "from"
    # log 0.5 at 200 and log 2 at 400 meet zero half way between their logarithms.
    assert found.at.value == pytest.approx(200 * 2**0.5)
    assert (found.at.low, found.at.high) == (pytest.approx(found.at.value),) * 2


def test_a_crossing_of_two_power_laws_is_where_they_are_equal():
    # 4 N is less than N ** 2 / 100 from N = 400.
    rows = power_law("fnet", 4, 1) + power_law(FUSED, 0.01, 2)
    found = Sweep(rows, "forward").crossover("fnet", FUSED)
    assert found.kind == "from"
    assert found.at.value == pytest.approx(400)


def test_the_interval_of_a_crossing_comes_from_the_bounds_of_the_ratios():
    found = find_crossover(ratios((0.4, 0.8), (1.25, 5)))
    # The upper bounds cross first, the lower ones last.
    assert 100 < found.at.low < found.at.value < found.at.high < 200
    assert found.at.low == pytest.approx(100 * 2 ** (0.2231436 / (0.2231436 + 1.6094379)))


def test_between_a_tie_and_a_win_there_is_only_a_bracket():
    found = find_crossover(ratios(0.5, (0.9, 1.2), 2))
    assert (found.kind, found.at) == ("from", Interval(400, 200, 400))


def test_a_win_that_does_not_last_is_unclear():
    assert find_crossover(ratios(2, 2, 0.5)).kind == "unclear"
    assert find_crossover(ratios(0.5, 2, (0.9, 1.1))).kind == "unclear"


def test_a_tie_everywhere_is_unclear():
    assert find_crossover(ratios((0.9, 1.1), (0.9, 1.1))).kind == "unclear"
    assert find_crossover([]).kind == "unclear"


def test_the_last_crossing_counts():
    found = find_crossover(ratios(2, 0.5, 2))
    assert found.at.value == pytest.approx(200 * 2**0.5)


def test_memory_crosses_where_peaks_are_equal():
    rows = [make_row("fnet", n, peak_mb=float(n)) for n in LENGTHS]
    rows += [make_row(FUSED, n, peak_mb=n * n / 400) for n in LENGTHS]
    assert Sweep(rows, "forward").memory_crossover("fnet", FUSED).at.value == pytest.approx(400)


@pytest.mark.parametrize("nothing", ["fnet", FUSED])
def test_lengths_without_any_memory_are_left_out_of_a_crossover(nothing):
    other = FUSED if nothing == "fnet" else "fnet"
    rows = [make_row(nothing, 64, peak_mb=0.0), make_row(other, 64, peak_mb=1.0)]
    assert Sweep(rows, "forward").memory_crossover("fnet", FUSED).kind == "unclear"
    rows += [make_row("fnet", 128, peak_mb=1.0), make_row(FUSED, 128, peak_mb=2.0)]
    assert Sweep(rows, "forward").memory_crossover("fnet", FUSED).kind == "always"


# Statements and claims


def only_statement(rows) -> str:
    (found,) = statements(rows)
    return found


def test_faster_at_every_length_is_said():
    rows = power_law("fnet", 1, 1) + power_law(FUSED, 2, 1)
    assert only_statement(rows) == (
        "fnet is faster than fused attention at every length, N = 128 to 1,024 (forward)."
    )


def test_faster_nowhere_is_said_as_not_supported():
    rows = power_law("fnet", 2, 1) + power_law(FUSED, 1, 1)
    assert only_statement(rows).endswith("not supported.")
    assert "fnet is not faster than fused attention at any length" in only_statement(rows)


def test_faster_from_a_length_is_said_with_that_length():
    rows = power_law("fnet", 4, 1) + power_law(FUSED, 0.01, 2)
    assert "fnet is faster than fused attention from N = 400" in only_statement(rows)
    assert "not at smaller N" in only_statement(rows)


def test_what_is_undecided_is_said_as_undecided():
    noisy = [0.5, 0.8, 1.0, 1.3, 1.6]
    rows = [make_row(label, 128, noisy) for label in ("fnet", FUSED)]
    assert "not decided" in only_statement(rows)


def test_a_statement_speaks_only_of_lengths_at_which_both_were_measured():
    rows = power_law("fnet", 1, 1, (128, 256)) + power_law(FUSED, 2, 1)
    rows.append(make_row("fnet", 512, status="oom"))
    assert "N = 128 to 256" in only_statement(rows)
    assert "1,024" not in only_statement(rows)


@pytest.mark.parametrize("failed", ["fnet", FUSED])
def test_what_was_never_measured_beside_the_baseline_is_not_tested(failed):
    rows = [make_row(one, n, status="ok" if one != failed else "oom") for one in ("fnet", FUSED)
            for n in LENGTHS]  # fmt: skip
    assert "not tested" in only_statement(rows)


def test_the_baselines_are_not_compared_with_themselves():
    assert statements(power_law(FUSED, 1, 1) + power_law(NAIVE, 2, 1)) == []


def test_without_fused_attention_nothing_is_said_of_speed():
    assert statements(power_law("fnet", 1, 1) + power_law(NAIVE, 2, 1)) == []


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ((0.95, 0.96), "above attention with every seed: fnet"),
        ((0.5, 0.6), "below attention with every seed: fnet"),
        ((0.85, 0.96), "no clear difference from attention (the seeds' ranges overlap): fnet"),
    ],
)
def test_accuracies_part_only_where_every_seed_does(accuracies, words):
    rows = [make_training("attention", a, seed=seed) for seed, a in enumerate((0.8, 0.9))]
    rows += [make_training("fnet", a, seed=seed) for seed, a in enumerate(accuracies)]
    assert words in only_statement(rows)


def claim(times, **fields):
    return Published(
        **{"source": "a study", "label": "spectral", "seq_len": 512, "times": times, **fields}
    )


@pytest.mark.parametrize(
    ("times", "verdict"),
    [(2.0, "supported"), (3.0, "supported"), (3.5, "not supported"), (200.0, "not supported")],
)
@pytest.mark.parametrize("measure", ["time", "memory"])
def test_a_claim_is_supported_as_far_as_the_rows_reach(times, verdict, measure):
    ours, theirs = ({"samples_ms": one, "peak_mb": one} for one in (2.0, 6.0))
    rows = [make_row("spectral", 512, **ours), make_row(NAIVE, 512, **theirs)]
    assert claim(times, measure=measure).check(rows, NAIVE)[0] == verdict


@pytest.mark.parametrize("ours", [1.0, 1.1, [0.5, 0.9, 1.0, 1.1, 2.0]])
def test_a_claim_to_be_faster_is_not_supported_by_a_tie(ours):
    rows = [make_row("spectral", 512, ours), make_row(NAIVE, 512, 1.0)]
    assert claim(1.0).check(rows, NAIVE)[0] == "not supported"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [make_row("spectral", 512)],
        [make_row("spectral", 256), make_row(NAIVE, 256)],
        [make_row("spectral", 512), make_row(NAIVE, 512, status="timeout")],
        [make_row("spectral", 512, status="oom"), make_row(NAIVE, 512)],
        [make_row(one, 512, direction="forward_backward") for one in ("spectral", NAIVE)],
        [make_row(one, 512) for one in ("spectral", FUSED)],
        [make_row(one, 512, subject="block") for one in ("spectral", NAIVE)],
    ],
)
def test_a_claim_without_its_rows_is_not_tested(rows):
    assert claim(2.0).check(rows, NAIVE)[0] == "not tested"


def test_a_claim_about_memory_that_was_not_seen_is_not_tested():
    rows = [make_row("spectral", 512, peak_mb=0.0), make_row(NAIVE, 512, peak_mb=2.0)]
    assert claim(2.0, measure="memory").check(rows, NAIVE)[0] == "not tested"


def test_a_claim_is_checked_against_each_baseline_by_itself():
    rows = [make_row("spectral", 512, 1.0), make_row(NAIVE, 512, 20.0), make_row(FUSED, 512, 2.0)]
    verdicts = [
        (verdict, measured.rpartition(" against ")[2])
        for one, verdict, measured in published_verdicts(rows)
        if one == claim(9.7, source="spectral study")
    ]
    assert verdicts == [("supported", NAIVE), ("not supported", FUSED)]


def test_trainings_keep_seeds_and_failures():
    rows = [make_training("fnet", 0.5), make_training("fnet", 0.7, seed=1)]
    rows.append({**make_training("fnet", 0.0, seed=2), "status": "timeout"})
    (found,) = trainings(rows)
    assert (found.accuracies, found.steps, found.failed) == ((0.5, 0.7), (100, 100), ("timeout",))

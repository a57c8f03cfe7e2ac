"""What a run measures twice: two runs of one machine agree within their own intervals.

Machines are synthetic: a measurement is off by a random factor of its own, as real ones are, beside
the spread of its samples.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench_helpers import make_row
from flashmix.bench.repeat import SECONDS_MOST, drift, measured_rows, to_repeat
from flashmix.bench.store import REPEATS_FILE, RESULTS_FILE
from flashmix.report.analysis.compare import compare
from flashmix.report.analysis.timings import Sweep, time_ratio

LABELS = ("attention (naive)", "attention (fused)", "fnet", "spectral", "local")
LENGTHS = [2**power for power in range(4, 14)]


def measure(generator, *, off: float, slower: dict[str, float] | None = None, lengths=LENGTHS):
    """A measurement of every label and length; ``off``: deviation of a median's log between two."""
    rows = []
    for n in lengths:
        for label in LABELS:
            true = 1e-3 * n * (slower or {}).get(label, 1.0)
            scale = true * np.exp(off * generator.standard_normal())
            samples = scale * (1 + generator.exponential(0.01, 25))
            rows.append(make_row(label, n, samples.tolist()))
    return rows


def run(generator, **settings):
    """Rows of a run with the drift that its second measurements show."""
    rows = measure(generator, **settings)
    found = drift(rows, measure(generator, **settings, lengths=LENGTHS[::3]))
    return [{**row, "drift": found} for row in rows]


def changed(before, after) -> float:
    comparison = compare(before, after)
    return len(comparison.significant) / len(comparison.changes)


def test_two_runs_of_one_machine_agree_within_their_intervals():
    generator = np.random.default_rng(0)
    shares = [changed(run(generator, off=0.05), run(generator, off=0.05)) for _ in range(20)]
    assert np.mean(shares) < 0.06


def test_without_second_measurements_they_would_not():
    generator = np.random.default_rng(0)
    shares = [changed(measure(generator, off=0.05), measure(generator, off=0.05)) for _ in range(5)]
    assert np.mean(shares) > 0.3


def test_a_planted_difference_is_still_found():
    generator = np.random.default_rng(1)
    before = run(generator, off=0.02)
    after = run(generator, off=0.02, slower={"fnet": 1.3})
    slow = {change.before["label"] for change in compare(before, after).slower_than(0.1)}
    assert slow == {"fnet"}


def test_intervals_of_ratios_cover_the_truth():
    generator = np.random.default_rng(2)
    covered = []
    for _ in range(20):
        sweep = Sweep(run(generator, off=0.05, slower={"fnet": 0.5}), "forward")
        for n in LENGTHS:
            found = sweep.speedup("fnet", "attention (fused)", n)
            covered.append(found.low <= 2.0 <= found.high)
    assert 0.9 <= np.mean(covered) <= 0.995


def test_drift_that_meets_all_alike_leaves_their_ratios_alone():
    first = [make_row(label, n, 2.0) for n in LENGTHS for label in LABELS]
    second = [make_row(label, n, 2.0 * (1 + n / 1e5)) for n in LENGTHS for label in LABELS]
    found = drift(first, second)
    assert found["cases"] == len(first)
    assert found["ratio"] == pytest.approx(0.0, abs=1e-12)
    assert found["time"] > 0
    rows = [{**row, "drift": found} for row in first]
    apart = time_ratio(rows[1], rows[0], in_turn=False)
    in_turn = time_ratio(rows[1], rows[0])
    assert in_turn.low == in_turn.high == 1.0
    assert apart.low < 1.0 < apart.high


def test_a_machine_that_repeats_itself_has_no_drift():
    rows = [make_row(label, 64, 2.0) for label in LABELS]
    assert drift(rows, rows) == {"cases": len(rows), "time": 0.0, "ratio": 0.0}
    assert drift(rows, []) == {"cases": 0}  # unknown, not zero


def test_groups_are_repeated_whole_and_spread_over_the_run():
    rows = [make_row(label, n) for n in LENGTHS for label in LABELS]
    again = to_repeat(rows)
    lengths = sorted({case.seq_len for case in again})
    assert len(lengths) == 3
    assert len(again) == len(lengths) * len(LABELS)
    assert lengths[0] < LENGTHS[4] < LENGTHS[-4] < lengths[-1]


def test_what_failed_or_took_long_or_was_no_timing_is_not_repeated():
    slow = make_row("fnet", 64, 1e3 * SECONDS_MOST)
    failed = make_row("fnet", 32, status="oom")
    assert to_repeat([slow, failed]) == []
    assert to_repeat([]) == []


def test_rows_carry_the_drift_of_their_run(tmp_path):
    rows = [make_row(label, 64, 2.0) for label in LABELS] + [make_row("fnet", 32, status="oom")]
    (tmp_path / RESULTS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert measured_rows(tmp_path) == rows
    again = [make_row(label, 64, 2.2) for label in LABELS]
    (tmp_path / REPEATS_FILE).write_text("".join(json.dumps(row) + "\n" for row in again))
    found = measured_rows(tmp_path)
    assert [{k: v for k, v in row.items() if k != "drift"} for row in found] == rows
    assert found[0]["drift"]["time"] == pytest.approx(np.log(1.1) / 1.96 / 2**0.5)
    assert "drift" not in found[-1]

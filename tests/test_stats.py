"""Statistics, timing and memory: what is planted is found, and nothing else.

Times are synthetic, so that no test depends on how busy the machine is.
"""

from __future__ import annotations

import mmap
import time

import numpy as np
import pytest
import torch

from flashmix.bench import BenchmarkCase, memory, timing
from flashmix.bench.actions import prepare
from flashmix.bench.stats import ratio, resampled_medians, summary

DRAWS = 400


def noisy_times(seed: int, scale: float = 1.0, count: int = 25) -> np.ndarray:
    """Times as machines give them: never below the true one, with a tail upwards."""
    return scale * (1 + np.random.default_rng(seed).exponential(0.05, count))


# Statistics


def test_a_planted_ten_percent_difference_is_found():
    # The median of 25 exponential times errs by 0.05 / sqrt(25), so 10 % is 7 standard errors of
    # the ratio: a miss in 100 draws would be a defect, not bad luck.
    for seed in range(100):
        found = ratio(noisy_times(2 * seed, 1.1), noisy_times(2 * seed + 1))
        assert found.low > 1, f"draw {seed}: {found}"
        assert found.value == pytest.approx(1.1, abs=0.1)


@pytest.mark.parametrize("truth", [1.0, 1.1])
def test_intervals_cover_the_truth_about_95_percent_of_the_time(truth):
    covered = 0
    for seed in range(DRAWS):
        found = ratio(noisy_times(2 * seed, truth), noisy_times(2 * seed + 1))
        covered += found.low <= truth <= found.high
    # Counting noise is sqrt(0.95 * 0.05 / 400) = 0.011; three of them below 0.95. Bootstrap medians
    # take few distinct values, which makes the interval wider and never narrower: cover up to 0.99.
    assert 0.917 <= covered / DRAWS <= 0.99


def test_the_same_samples_give_the_same_interval():
    a, b = noisy_times(0), noisy_times(1)
    assert ratio(a, b) == ratio(a.copy(), b.copy())
    assert (resampled_medians(a, 3) == resampled_medians(list(a), 3)).all()


def test_samples_without_spread_give_an_interval_without_width():
    found = ratio([6.0] * 5, [2.0] * 5)
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


def test_a_ratio_turned_over_is_the_inverse():
    a, b = noisy_times(0, 2.0), noisy_times(1)
    assert ratio(a, b).value == pytest.approx(1 / ratio(b, a).value)


def test_summary_of_known_samples():
    assert summary([1.0, 2.0, 3.0, 4.0, 90.0]) == {
        "median_ms": 3.0,
        "q1_ms": 2.0,
        "q3_ms": 4.0,
        "mean_ms": 20.0,
        "std_ms": pytest.approx((6130 / 4) ** 0.5),
        "noisy": True,
    }


def test_a_single_sample_has_no_deviation():
    found = summary([2.5])
    assert (found["median_ms"], found["std_ms"], found["noisy"]) == (2.5, 0.0, False)


@pytest.mark.parametrize(("spread", "noisy"), [(0.24, False), (0.26, True)])
def test_noisy_means_quartiles_over_a_quarter_of_the_median_apart(spread, noisy):
    samples = [1.0, 4.0 - 2 * spread, 4.0, 4.0 + 2 * spread, 9.0]
    assert summary(samples)["noisy"] is noisy


# Timing


class Machine:
    """A machine whose time passes only while one of its clocks runs."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(timing, "running_seconds", lambda: self.now)

    def clock(self, name, seconds):
        """``seconds``: of one call, or a function that gives them."""

        def run(calls):
            one = seconds() if callable(seconds) else seconds
            self.log.append(name)
            self.now += one * calls
            return one

        return run


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def collect(clocks, *, min_samples=3, max_samples=5, seconds_each=1e9):
    return list(
        timing.interleave(
            clocks, min_samples=min_samples, max_samples=max_samples, seconds_each=seconds_each
        )
    )


def test_what_is_compared_is_measured_in_turn(machine):
    taken = collect([machine.clock(name, 1.0) for name in "ABC"], max_samples=4)
    assert [index for index, _ in taken] == [0, 1, 2] * 4
    assert "".join(machine.log).endswith("ABC" * 4)


def test_a_quick_clock_goes_on_to_the_most_samples(machine):
    assert len(collect([machine.clock("A", 1e-3)], max_samples=7)) == 7


def test_a_slow_clock_stops_at_the_fewest_samples_and_the_others_go_on(machine):
    clocks = [machine.clock("A", 100.0), machine.clock("B", 0.01)]
    taken = collect(clocks, min_samples=2, max_samples=6, seconds_each=1.0)
    assert [index for index, _ in taken] == [0, 1, 0, 1, 1, 1, 1, 1]


def test_every_sample_is_the_time_of_one_call(machine):
    taken = collect([machine.clock("A", 1e-4), machine.clock("B", 3.0)])
    assert dict(taken) == {0: 1e-4, 1: 3.0}


def test_drift_of_the_machine_meets_all_alike(machine):
    def slower_and_slower(base):
        return lambda: base * (1 + machine.now / 40)

    clocks = [
        machine.clock("A", slower_and_slower(0.11)),
        machine.clock("B", slower_and_slower(0.1)),
    ]
    taken = collect(clocks, min_samples=25, max_samples=25)
    times = [[seconds for index, seconds in taken if index == one] for one in (0, 1)]
    assert times[0][-1] > 1.1 * times[0][0]
    # One turn in which the machine slows by (0.11 + 0.1) / 40 is all that parts the two.
    assert ratio(times[0], times[1]).value == pytest.approx(1.1, rel=0.01)


def test_every_call_is_announced_so_that_a_slow_one_is_not_taken_for_a_hung_one(machine):
    names, seconds = "AB", iter(range(1, 1000))
    told = []
    list(
        timing.interleave(
            [machine.clock(name, lambda: next(seconds) ** 3) for name in names],
            min_samples=3,
            max_samples=3,
            seconds_each=1.0,
            before=lambda index: told.append(names[index]),
        )
    )
    assert len(told) > 6
    assert told == machine.log


def test_a_very_slow_clock_stops_at_three_samples(machine):
    taken = timing.interleave(
        [machine.clock("A", 40.0)],
        min_samples=20,
        max_samples=50,
        seconds_each=1.0,
        max_seconds_each=100.0,
    )
    assert len(list(taken)) == 3


def test_warm_up_ends_when_two_calls_agree(machine):
    times = iter([0.1, 0.05, 0.02, 0.01, 0.01])
    timing.calls_per_sample(machine.clock("A", lambda: next(times)))
    assert next(times, None) is None
    assert machine.log == ["A"] * 5


def test_slow_calls_do_not_warm_up_for_long(machine):
    times = iter([10.0, 5.0, 2.0, 1.0])
    timing.calls_per_sample(machine.clock("A", lambda: next(times)))
    assert machine.log == ["A"] * 2


def test_warm_up_ends_even_if_calls_never_agree(machine):
    times = iter([4.0**power for power in range(100)])
    timing.calls_per_sample(machine.clock("A", lambda: next(times)))
    assert len(machine.log) < 20


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 1), (1e-3, 2), (1e-5, 200), (1e-9, 1000)])
def test_a_sample_lasts_about_two_milliseconds(machine, seconds, calls):
    assert timing.calls_per_sample(machine.clock("A", seconds)) == calls


def test_the_cpu_clock_calls_what_it_times():
    calls = []
    assert timing.clock(lambda: calls.append(1), "cpu")(7) > 0
    assert len(calls) >= 7


# Memory

N = 512
MATRIX = N * N * 4 / 1e6
# Scalars that an operator wraps into tensors of their own.
SCALARS = 64 / 1e6


def test_peak_is_the_bytes_of_the_matrices_held_at_once():
    q, k = torch.randn(N, 4), torch.randn(N, 4)

    def scores_then_weights():
        scores = q @ k.T
        weights = scores.softmax(-1)
        del scores
        return weights * 2.0

    assert memory.peak_mb(scores_then_weights, "cpu") == pytest.approx(2 * MATRIX, abs=SCALARS)


def test_peak_counts_what_is_freed_only_once():
    def one_after_the_other():
        for _ in range(4):
            torch.zeros(N, N)

    assert memory.peak_mb(one_after_the_other, "cpu") == pytest.approx(MATRIX, abs=SCALARS)


def test_peak_leaves_out_what_was_there_before():
    held = torch.ones(N, N)
    assert memory.peak_mb(lambda: held.add_(1), "cpu") <= SCALARS


def test_naive_attention_holds_its_scores_and_fused_attention_does_not():
    def peak(impl):
        case = BenchmarkCase(
            suite="", mixer="attention", impl=impl, batch=1, seq_len=N, dim=16, num_heads=2
        )
        prepared = prepare(case)
        prepared.action()
        return memory.peak_mb(prepared.action, "cpu")

    assert peak("naive") >= 2 * MATRIX
    assert peak("sdpa") < MATRIX


def test_a_second_measurement_gives_the_same_peak():
    case = BenchmarkCase(
        suite="",
        mixer="attention",
        impl="naive",
        direction="forward_backward",
        batch=2,
        seq_len=64,
        dim=32,
        num_heads=4,
    )
    action = prepare(case).action
    assert len({memory.peak_mb(action, "cpu") for _ in range(3)}) == 1


def resident(size: int) -> mmap.mmap:
    """Memory with every page touched, which the heap cannot serve from what it holds free."""
    block = mmap.mmap(-1, size)
    block[:: mmap.PAGESIZE] = b"1" * len(range(0, size, mmap.PAGESIZE))
    return block


def test_memory_that_is_no_tensor_shows_only_in_the_resident_set():
    if not memory.reset_peak_rss():
        pytest.skip("this system keeps no peak that can be reset")
    before = memory.peak_rss_mb()
    size = 64_000_000
    peak = memory.peak_mb(lambda: resident(size), "cpu")
    assert peak <= SCALARS
    assert memory.peak_rss_mb() - before >= 0.9 * size / memory.MB


def test_the_peak_of_the_resident_set_can_start_afresh():
    if not memory.reset_peak_rss():
        pytest.skip("this system keeps no peak that can be reset")
    block = resident(64_000_000)
    high = memory.peak_rss_mb()
    block.close()
    memory.reset_peak_rss()
    assert memory.peak_rss_mb() <= high - 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_clock_parts_the_gpus_time_from_pythons():
    x = torch.zeros(1024, device="cuda")

    def slow_to_issue():
        time.sleep(5e-3)
        x.add_(1)

    clock = timing.clock(slow_to_issue, "cuda")
    assert clock(3) < 1e-3
    assert clock.host_seconds > 4e-3

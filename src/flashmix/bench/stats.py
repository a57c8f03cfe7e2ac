"""Statistics of timing samples.

Samples on shared machines are skewed upwards, so medians are quoted, and intervals come from
resampling rather than from a normal law. The samples of one measurement know nothing of how far the
next one lies off (another process, another moment), so intervals also take the drift seen between
two measurements of the same cases; see :func:`drift`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
NOISY = 0.25


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def summary(samples_ms: Sequence[float]) -> dict[str, float | bool]:
    """Median, quartiles, mean and standard deviation in ms; noisy = quartiles far apart."""
    values = np.asarray(samples_ms, dtype=float)
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return {
        "median_ms": float(median),
        "q1_ms": float(q1),
        "q3_ms": float(q3),
        "mean_ms": float(values.mean()),
        "std_ms": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "noisy": bool(q3 - q1 > NOISY * median),
    }


def drift(changes: Sequence[float]) -> float:
    """Standard deviation of the log of one measurement, from log changes between two of the same.

    It is set so that 95 % of the changes lie within 1.96 standard deviations of a difference:
    machines jump more often than a normal law with their usual deviation has it.
    """
    return float(np.percentile(np.abs(changes), 95) / (1.96 * np.sqrt(2)))


def resampled_medians(samples: Sequence[float], seed: int, drift: float = 0.0) -> np.ndarray:
    """Bootstrap medians [RESAMPLES] of ``samples``, each off by a random ``drift`` of its log."""
    values = np.asarray(samples, dtype=float)
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(values), (RESAMPLES, len(values)))
    medians: np.ndarray = np.median(values[picks], axis=1)
    return medians * np.exp(drift * generator.standard_normal(RESAMPLES)) if drift else medians


def ratio(numerator: Sequence[float], denominator: Sequence[float], drift: float = 0.0) -> Interval:
    """Ratio of medians with its 95 % bootstrap interval; the same input, the same interval.

    ``drift`` is that of the ratio's log.
    """
    return _ratio(tuple(numerator), tuple(denominator), drift)


@lru_cache(maxsize=4096)  # a report asks for most ratios several times
def _ratio(numerator: tuple[float, ...], denominator: tuple[float, ...], drift: float) -> Interval:
    resampled = resampled_medians(numerator, 1, drift) / resampled_medians(denominator, 2)
    low, high = np.percentile(resampled, [2.5, 97.5])
    value = float(np.median(numerator) / np.median(denominator))
    return Interval(value, float(low), float(high))


STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantile of Student's t with 1, 2, ... degrees of freedom."""


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of a few runs with its 95 % interval by Student's t; one run has none (NaN)."""
    found = np.asarray(values, dtype=float)
    mean, freedom = float(found.mean()), len(found) - 1
    if not freedom:
        return Interval(mean, float("nan"), float("nan"))
    t = STUDENT_T[freedom - 1] if freedom <= len(STUDENT_T) else 2.0
    half = t * float(found.std(ddof=1)) / len(found) ** 0.5
    return Interval(mean, mean - half, mean + half)

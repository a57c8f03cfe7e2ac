"""Statistics of timing samples.

Samples on shared machines are skewed upwards, so medians are quoted, and intervals come from
resampling rather than from a normal law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def resampled_medians(samples: Sequence[float], seed: int) -> np.ndarray:
    """Bootstrap medians [RESAMPLES] of ``samples``."""
    values = np.asarray(samples, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    return np.median(values[picks], axis=1)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Ratio of medians with its 95 % bootstrap interval; the same input, the same interval."""
    resampled = resampled_medians(numerator, 1) / resampled_medians(denominator, 2)
    low, high = np.percentile(resampled, [2.5, 97.5])
    value = float(np.median(numerator) / np.median(denominator))
    return Interval(value, float(low), float(high))

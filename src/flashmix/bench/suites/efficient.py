"""``efficient``: full, top-k and local attention from 64 tokens to 65,536."""

from __future__ import annotations

from flashmix.bench.case import BenchmarkCase, Suite
from flashmix.bench.suites.grid import BASELINES, Grid, declared, with_copy

NAIVE_MOST = 16_384
"""Naive attention stops here; its N x N weights would not fit beyond."""


def efficient(grid: Grid) -> Suite:
    """Forward time over N, 20 runs each where a run takes less than a second."""
    cases = []
    for seq_len in grid.seq_lens or tuple(64 << i for i in range(11)):
        baselines = BASELINES if seq_len <= NAIVE_MOST else BASELINES[1:]
        cases += with_copy(
            BenchmarkCase(
                suite="efficient",
                mixer="attention",
                batch=grid.batch or 1,
                seq_len=seq_len,
                dim=grid.dims[0] if grid.dims else 64,
                num_heads=grid.num_heads or 1,
                dtype=grid.dtype or "float32",
                device=grid.device,
                seed=grid.seed,
            ),
            [*baselines, *((text, "auto") for text in grid.mixers or declared("efficient"))],
        )
    return Suite(
        name="efficient",
        about="full, top-k and local attention, N from 64 to 65,536",
        cases=tuple(cases),
        min_samples=grid.passes or 20,
        max_samples=grid.passes or 20,
        max_seconds_per_case=20.0,
        notes=(
            "20 runs of each, fewer (at least three) where they would take over 20 s.",
            f"Naive attention is measured up to N = {NAIVE_MOST:,}.",
        ),
    )

"""``swap``: a text classifier of BERT-tiny's size with each mixer, inference and training step."""

from __future__ import annotations

from flashmix.bench.case import BenchmarkCase, Suite
from flashmix.bench.suites.grid import BASELINES, Grid, declared

PATTERNS = ("spectral,attention", "fnet,attention")


def swap(grid: Grid) -> Suite:
    """2 layers, width 128, 2 heads, vocabulary 30,522, batch 32 at 128, 256 and 512 tokens."""
    mixers = grid.mixers or (*declared("swap"), *PATTERNS)
    cases = [
        BenchmarkCase(
            suite="swap",
            mixer=mixer,
            impl=impl,
            direction=direction,
            subject="encoder",
            batch=grid.batch or 32,
            seq_len=seq_len,
            dim=grid.dims[0] if grid.dims else 128,
            num_heads=grid.num_heads or 2,
            dtype=grid.dtype or "float32",
            device=grid.device,
            seed=grid.seed,
        )
        for direction in ("forward", "train_step")
        if grid.wants(direction)
        for seq_len in grid.seq_lens or (128, 256, 512)
        for mixer, impl in [
            *BASELINES,
            *((text, "auto") for text in mixers),
        ]
    ]
    return Suite(
        name="swap",
        about="a classifier of BERT-tiny's size with each mixer: inference and training step",
        cases=tuple(cases),
        min_samples=9,
        max_samples=30,
    )

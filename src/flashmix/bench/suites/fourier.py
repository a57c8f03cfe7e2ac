"""``fourier``: Fourier attention against attention at one shape, [8, 512, 64] with 8 heads."""

from __future__ import annotations

import dataclasses

from flashmix.bench.case import BenchmarkCase, Suite
from flashmix.bench.suites.grid import Grid, with_copy

MIXERS = (
    ("attention(bias=False)", "naive"),
    ("attention(bias=False)", "sdpa"),
    ("fourier", "auto"),
)


def fourier(grid: Grid) -> Suite:
    """Forward, backward and both, in float32 and under autocast; FFT magnitudes of the heads."""
    mixers = [*MIXERS, *((text, "auto") for text in grid.mixers or ())]
    cases = []
    for direction in ("forward", "backward", "forward_backward"):
        if not grid.wants(direction):
            continue
        for seq_len in grid.seq_lens or (512,):
            plain = BenchmarkCase(
                suite="fourier",
                mixer="fourier",
                direction=direction,
                batch=grid.batch or 8,
                seq_len=seq_len,
                dim=grid.dims[0] if grid.dims else 64,
                num_heads=grid.num_heads or 8,
                dtype=grid.dtype or "float32",
                device=grid.device,
                seed=grid.seed,
            )
            cases += with_copy(plain, mixers)
            cases += [
                dataclasses.replace(plain, mixer=m, impl=impl, autocast="bfloat16")
                for m, impl in mixers
            ]
    properties = dataclasses.replace(
        plain, direction="properties", dtype="float32", mixer="fourier"
    )
    return Suite(
        name="fourier",
        about="Fourier attention against attention at [8, 512, 64], 8 heads",
        cases=(*cases, properties),
        min_samples=20,
        max_samples=50,
    )

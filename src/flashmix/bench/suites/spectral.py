"""``spectral``: spectral mixing against naive and fused attention, batch 8, width 256."""

from __future__ import annotations

import dataclasses

from flashmix.bench.case import BenchmarkCase, Suite
from flashmix.bench.suites.grid import BASELINES, Grid, with_copy


def spectral(grid: Grid) -> Suite:
    """Speed, memory, forward + backward, blocks and scaling over N, and the invariants."""
    mixers = [*BASELINES, *((text, "auto") for text in grid.mixers or ("spectral",))]
    plain = BenchmarkCase(
        suite="spectral",
        mixer="spectral",
        batch=grid.batch or 8,
        seq_len=512,
        dim=grid.dims[0] if grid.dims else 256,
        num_heads=grid.num_heads or 4,
        dtype=grid.dtype or "float32",
        device=grid.device,
        seed=grid.seed,
    )
    cases = []
    for direction in ("forward", "forward_backward"):
        if not grid.wants(direction):
            continue
        for seq_len in grid.seq_lens or (64, 128, 256, 512, 1024, 2048):
            cases += with_copy(
                dataclasses.replace(plain, direction=direction, seq_len=seq_len), mixers
            )
        block = dataclasses.replace(plain, direction=direction, subject="block")
        cases += [dataclasses.replace(block, mixer=m, impl=impl) for m, impl in mixers]
    return Suite(
        name="spectral",
        about="spectral mixing against attention: speed, memory, blocks, scaling, invariants",
        cases=(*cases, dataclasses.replace(plain, direction="properties", dtype="float32")),
        min_samples=7,
        max_samples=50,
    )

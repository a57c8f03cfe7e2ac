"""``naive``: what attention with its N x N weights in memory costs, and what each remedy saves."""

from __future__ import annotations

import dataclasses

from flashmix.bench.case import BenchmarkCase, Suite
from flashmix.bench.suites.grid import Grid
from flashmix.tasks.distributed import launched, launched_world

REMEDIES: tuple[dict[str, object], ...] = (
    {"impl": "sdpa"},
    {"checkpoint": True},
    {"mixer": "local(window=128)", "impl": "auto"},
    {"mixer": "topk(topk=32)", "impl": "auto"},
    {"autocast": "bfloat16"},
)
"""Fused attention, gradient checkpointing, sparse attention twice, mixed precision."""
SEQUENCE_PARALLEL = 2
"""Ranks of the remedy that spreads the tokens over processes, or over GPUs where --ranks asks."""


def naive(grid: Grid) -> Suite:
    """d_model x N without heads, forward and backward apart."""
    small = not grid.on_gpu
    dims = grid.dims or ((16, 32, 64) if small else (16, 32, 64, 128))
    seq_lens = grid.seq_lens or ((256, 1024, 4096) if small else (256, 1024, 4096, 8192, 16384))
    passes = grid.passes or (50 if small else 100)
    ranks = grid.ranks or (launched_world() if launched() else SEQUENCE_PARALLEL if small else None)
    cases, over_ranks = [], []
    for dim in dims:
        for seq_len in seq_lens:
            for direction in ("forward", "backward"):
                if not grid.wants(direction):
                    continue
                plain = BenchmarkCase(
                    suite="naive",
                    mixer="attention",
                    impl="naive",
                    direction=direction,
                    batch=grid.batch or (4 if small else 8),
                    seq_len=seq_len,
                    dim=dim,
                    num_heads=grid.num_heads or 1,
                    dtype=grid.dtype or "float32",
                    device=grid.device,
                    seed=grid.seed,
                )
                cases.append(plain)
                if grid.remedies:
                    cases += [dataclasses.replace(plain, **remedy) for remedy in REMEDIES]  # type: ignore[arg-type]
                    if ranks:
                        over_ranks.append(dataclasses.replace(plain, ranks=ranks))
    notes: tuple[str, ...] = (
        ("On a CPU the grid is smaller: batch 4, N up to 4,096, d_model up to 64, 50 passes.",)
        if small
        else ()
    )
    if grid.remedies and ranks:
        notes += (
            f"Sequence parallelism: the same attention, its tokens over {ranks} ranks that share "
            "the threads; time is that of the slowest rank as the caller waits, memory the most "
            "of any rank.",
        )
    elif grid.remedies:
        notes += ("Sequence parallelism over GPUs is left out; --ranks 2 measures it on two.",)
    return Suite(
        name="naive",
        about="naive attention over d_model and N; --remedies adds what could replace it",
        cases=(*cases, *over_ranks),
        min_samples=passes,
        max_samples=passes,
        notes=notes,
    )

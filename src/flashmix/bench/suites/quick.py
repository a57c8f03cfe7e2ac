"""``quick``: every mixer in about three minutes, then trained on handwritten digits."""

from __future__ import annotations

from flashmix.bench.case import BenchmarkCase, Lengths, Suite
from flashmix.bench.suites.grid import BASELINES, Grid, declared, with_copy

DIGITS_SECONDS = 6.0
PADDED_AT = 512


def _lengths(grid: Grid, seq_len: int) -> list[Lengths]:
    """Of which lengths the sequences of a batch are at ``seq_len``."""
    padded = grid.lengths is not None or seq_len == PADDED_AT
    both: tuple[Lengths, ...] = ("full", "uniform") if padded else ("full",)
    return [one for one in both if grid.wants_lengths(one)]


def quick(grid: Grid) -> Suite:
    """All mixers at N 128 to 2,048, forward and forward + backward; digits with two seeds.

    A padded batch stands beside the full one at ``PADDED_AT`` tokens, or
    everywhere where ``grid.lengths`` asks for it.
    """
    mixers = [*BASELINES, *((text, "auto") for text in grid.mixers or declared("quick"))]
    sweep = [
        one
        for direction in ("forward", "forward_backward")
        if grid.wants(direction)
        for seq_len in grid.seq_lens or (128, 256, 512, 1024, 2048)
        for lengths in _lengths(grid, seq_len)
        for one in with_copy(
            BenchmarkCase(
                suite="quick",
                mixer="attention",
                direction=direction,
                batch=grid.batch or (16 if grid.on_gpu else 2),
                seq_len=seq_len,
                dim=grid.dims[0] if grid.dims else 256,
                num_heads=grid.num_heads or 4,
                dtype=grid.dtype or ("bfloat16" if grid.on_gpu else "float32"),
                device=grid.device,
                seed=grid.seed,
                lengths=lengths,
            ),
            mixers,
        )
    ]
    digits = [
        BenchmarkCase(
            suite="quick",
            mixer=mixer,
            direction="train",
            batch=32,
            seq_len=64,
            dim=64,
            num_heads=4,
            device=grid.device,
            seed=seed,
            seconds=DIGITS_SECONDS,
        )
        for mixer in (("attention", *grid.mixers) if grid.mixers else declared("digits"))
        for seed in (grid.seed, grid.seed + 1)
        if grid.wants("train") and grid.wants_lengths("full")
    ]
    return Suite(name="quick", about="all mixers in about three minutes", cases=(*sweep, *digits))

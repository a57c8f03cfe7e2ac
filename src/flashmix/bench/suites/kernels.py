"""``kernels``: every op and implementation against what a user would otherwise run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from flashmix.bench.baselines import implementations, installed_baselines
from flashmix.bench.case import COPY, BenchmarkCase, Lengths, Suite
from flashmix.bench.suites.grid import Grid
from flashmix.errors import unknown_choice

Shape = tuple[int, int, int]

FNET_CPU: tuple[Shape, ...] = (
    (8, 128, 128),
    (8, 512, 128),
    (8, 512, 256),
    (4, 2048, 256),
    (1, 8192, 768),
    (8, 512, 768),
    (32, 512, 128),
    (8, 500, 768),
    (8, 509, 256),
)
SPECTRAL_CPU: tuple[Shape, ...] = ((8, 512, 128), (4, 2048, 256), (8, 512, 768), (1, 8192, 768))
FOURIER_CPU: tuple[tuple[int, int, int, int], ...] = (
    (8, 512, 64, 8),
    (8, 512, 512, 8),
    (4, 2048, 512, 8),
    (1, 8192, 512, 8),
)
"""Batch, N, width and heads."""
FNET_GPU: tuple[Shape, ...] = (
    (64, 4096, 768),
    (8, 16384, 768),
    (64, 4096, 256),
    (16, 2048, 1024),
    (8, 512, 256),
    (32, 512, 768),
    (8, 2048, 256),
    (1, 131072, 768),
    (1, 1048576, 768),
    (32, 509, 768),
    (8, 4099, 768),
)
SPECTRAL_GPU: tuple[Shape, ...] = (
    (32, 4096, 768),
    (8, 16384, 768),
    (8, 2048, 256),
    (1, 131072, 768),
    (8, 4099, 768),
)
HALF_SPECTRAL_GPU = ((32, 4096, 768), (1, 131072, 768))
"""Filters of D // 2 modes, the mixer's own default."""
# Batch, N and window, or keys kept; eight heads of width 64.
LOCAL_GPU: tuple[Shape, ...] = (
    (4, 4096, 128),
    (4, 16384, 512),
    (1, 16384, 512),
    (1, 131072, 512),
    (1, 1048576, 512),
)
TOPK_GPU: tuple[Shape, ...] = ((4, 4096, 32), (1, 16384, 64))
BLOCK_GPU: tuple[Shape, ...] = ((1, 65536, 4096),)
# More lengths, to find from which N each is faster than fused dense attention: fewer baselines.
LOCAL_SWEEP: tuple[Shape, ...] = tuple((4, n, 128) for n in (512, 1024, 2048, 8192, 16384))
TOPK_SWEEP: tuple[Shape, ...] = tuple((4, n, 32) for n in (512, 1024, 2048, 8192, 16384))
BLOCK_SWEEP: tuple[Shape, ...] = tuple(
    (1, n, n // 16) for n in (2048, 4096, 8192, 16384, 32768, 131072)
)
# At these shapes padded batches are measured beside full ones: batch, N and width.
PADDED_CPU: tuple[Shape, ...] = ((32, 128, 128), (8, 512, 256), (32, 512, 768))
PADDED_GPU: tuple[Shape, ...] = (
    (32, 512, 768),
    (8, 2048, 768),
    (4, 4096, 768),
    (8, 512, 256),
    (16, 577, 768),
    (32, 197, 768),
)
PADDED_WINDOW, PADDED_TOPK = 128, 32
PADDED_BASELINES = ("fftn", "rfft-filter-irfft", "rfft-weigh-irfft", "sdpa", "sdpa-mask")
"""Fused attention with the mask; the transforms as users write them, over the whole tensor."""
ATTENTION_CPU = (512, 1024, 2048, 4096, 8192)
LOCAL_CPU: tuple[Shape, ...] = tuple((1, n, w) for n in ATTENTION_CPU for w in (64, 128, 512))
TOPK_CPU: tuple[Shape, ...] = tuple((1, n, 32) for n in ATTENTION_CPU)
BLOCK_CPU: tuple[Shape, ...] = ((1, 2048, 128), (1, 4096, 256))

HEADS, HEAD_WIDTH = 8, 64
MODES = 128
WHOLE_SCORES = ("topk-scatter", "x-transformers")
NAIVE_TOPK_MOST = 4096
"""As usually written, top-k attention needs several N x N tensors: 12 GB at 16,384 on the GPU."""
MASK_MOST = 32_768
"""A mask of N x N elements beside fused attention takes 2 GB and more beyond."""
BLOCK_LEAST = 2048
"""Shorter sequences have too few blocks to choose among."""
DENSE_MOST = 262_144
"""Dense attention over a million tokens takes seconds a call."""


OPS = ("fnet", "spectral", "local", "topk", "block", "fourier")


def check_op(name: str) -> None:
    """Raise ArgumentError unless this suite has ``name``."""
    if name not in OPS:
        raise unknown_choice("op of suite 'kernels'", name, OPS)


def kernels(grid: Grid) -> Suite:
    """Forward and forward + backward of fnet, spectral, local and top-k attention.

    Also what block selection misses of the exact one's keys, and on the CPU Fourier attention.
    """
    cases = [
        dataclasses.replace(case, impl=impl)
        for direction in ("forward", "forward_backward")
        if grid.wants(direction)
        for case in _subjects(grid)
        for lengths in _lengths(grid, case)
        for case in [dataclasses.replace(case, direction=direction, lengths=lengths)]
        for impl in (_impls(case) if grid.baselines else implementations(case))
    ]
    properties = [
        dataclasses.replace(case, impl="torch", direction="properties")
        for case in _subjects(grid)
        if grid.wants_lengths("full")
        if case.op == "block_topk_attention" and (case.batch, case.seq_len) in _FACTS_AT
    ]
    with_floor: list[BenchmarkCase] = []
    for case in cases:
        if not with_floor or with_floor[-1].group != case.group:
            with_floor.append(dataclasses.replace(case, mixer=COPY, impl="torch"))
        with_floor.append(case)
    return Suite(
        name="kernels",
        about="every op and implementation against what a user would otherwise run",
        cases=(*with_floor, *properties),
        min_samples=9,
        max_samples=60,
        seconds_per_case=0.3,
        max_seconds_per_case=3.0,
    )


def _lengths(grid: Grid, case: BenchmarkCase) -> list[Lengths]:
    """Whether the batch is measured full, padded, or both."""
    shapes = PADDED_GPU if grid.on_gpu else PADDED_CPU
    padded = (case.seq_len, case.dim) in [shape[1:] for shape in shapes]
    both: tuple[Lengths, ...] = ("full", "uniform") if padded else ("full",)
    return [one for one in both if grid.wants_lengths(one)]


_FACTS_AT = {(batch, n) for batch, n, _ in (*BLOCK_GPU, *BLOCK_CPU)}


def _impls(case: BenchmarkCase) -> list[str]:
    assert case.op is not None
    shape = (case.batch, case.seq_len, case.window or case.topk)
    sweep = {"local_attention": LOCAL_SWEEP, "topk_attention": TOPK_SWEEP}.get(case.op, ())
    others = [name for name in installed_baselines(case.op) if not _left_out(name, case)]
    if case.device == "cuda" and shape in sweep:
        others = [name for name in others if name == "sdpa"]
    return [*others, *implementations(case)]


def _left_out(name: str, case: BenchmarkCase) -> bool:
    """Whether a baseline could not finish, or is not made for the device or for padding."""
    if case.lengths == "uniform" and name not in PADDED_BASELINES:
        return True
    if case.device == "cpu":
        whole = name in WHOLE_SCORES and case.seq_len > NAIVE_TOPK_MOST
        return whole or name == "flex-mask" or (name == "flex" and case.direction != "forward")
    if name == "sdpa-mask":
        return case.seq_len > MASK_MOST
    return name == "sdpa" and case.seq_len > DENSE_MOST


def _subjects(grid: Grid) -> Iterator[BenchmarkCase]:
    """One case for each op and shape."""
    wanted = grid.mixers or OPS

    def case(op: str, batch: int, seq_len: int, dim: int, **options: int) -> BenchmarkCase:
        return BenchmarkCase(
            suite="kernels",
            mixer=op,
            subject="op",
            op=op,
            batch=grid.batch or batch,
            seq_len=seq_len,
            dim=dim,
            num_heads=grid.num_heads or (1 if op in ("fnet", "spectral") else HEADS),
            dtype=grid.dtype or ("bfloat16" if grid.on_gpu else "float32"),
            device=grid.device,
            seed=grid.seed,
            **options,  # type: ignore[arg-type]
        )

    def lengths(shapes: tuple[Shape, ...]) -> list[Shape]:
        return [s for s in shapes if grid.seq_lens is None or s[1] in grid.seq_lens]

    padded = [] if grid.lengths == ("full",) else lengths(PADDED_GPU if grid.on_gpu else PADDED_CPU)
    if "fnet" in wanted:
        for shape in dict.fromkeys([*lengths(FNET_GPU if grid.on_gpu else FNET_CPU), *padded]):
            yield case("fnet", *shape)
    if "spectral" in wanted:
        for shape in lengths(SPECTRAL_GPU if grid.on_gpu else SPECTRAL_CPU):
            for modes in (MODES, shape[1] // 2 + 1):
                yield case("spectral", *shape, modes=modes)
        for shape in lengths(HALF_SPECTRAL_GPU if grid.on_gpu else ()):
            yield case("spectral", *shape, modes=shape[2] // 2)
        for shape in padded:
            yield case("spectral", *shape, modes=min(MODES, shape[1] // 2 + 1))
    width = HEADS * HEAD_WIDTH
    local, topk, block = LOCAL_CPU, TOPK_CPU, BLOCK_CPU
    if grid.on_gpu:
        local, topk, block = LOCAL_GPU + LOCAL_SWEEP, TOPK_GPU + TOPK_SWEEP, BLOCK_GPU + BLOCK_SWEEP
    if "local" in wanted:
        for batch, n, window in lengths(local):
            yield case("local_attention", batch, n, width, window=window)
        for shape in padded:
            yield _headed(case("local_attention", *shape, window=PADDED_WINDOW), grid)
    if "topk" in wanted:
        for batch, n, count in lengths(topk):
            yield case("topk_attention", batch, n, width, topk=count)
        for shape in padded:
            yield _headed(case("topk_attention", *shape, topk=PADDED_TOPK), grid)
    if "block" in wanted:
        for batch, n, count in lengths(block):
            yield case("block_topk_attention", batch, n, width, topk=count)
        for shape in padded:
            if shape[1] >= BLOCK_LEAST:
                yield _headed(case("block_topk_attention", *shape, topk=shape[1] // 16), grid)
    if "fourier" in wanted:
        for batch, n, dim, heads in () if grid.on_gpu else FOURIER_CPU:
            if grid.seq_lens is None or n in grid.seq_lens:
                one = case("fourier", batch, n, dim)
                yield dataclasses.replace(one, num_heads=grid.num_heads or heads)
        for shape in padded:
            yield _headed(case("fourier", *shape), grid)


def _headed(case: BenchmarkCase, grid: Grid) -> BenchmarkCase:
    """``case`` with heads of the usual width."""
    return dataclasses.replace(case, num_heads=grid.num_heads or case.dim // HEAD_WIDTH)

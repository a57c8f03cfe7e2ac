"""``kernels``: every op and implementation against what a user would otherwise run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from flashmix.bench.case import COPY, Case, Suite
from flashmix.bench.contenders import everyday, implementations
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
ATTENTION_GPU: tuple[tuple[int, int, int, int], ...] = ((4, 4096, 128, 32), (1, 16384, 512, 64))
"""Batch, N, window and topk; eight heads of width 64."""

HEADS, HEAD_WIDTH = 8, 64
MODES = 128
WHOLE_SCORES = ("topk-scatter", "x-transformers")
NAIVE_TOPK_MOST = 4096
"""As usually written, top-k attention needs several N x N tensors: 12 GB at 16,384 on the GPU."""


OPS = ("fnet", "spectral", "local", "topk")


def check_op(name: str) -> None:
    """Raise ArgumentError unless this suite has ``name``."""
    if name not in OPS:
        raise unknown_choice("op of suite 'kernels'", name, OPS)


def kernels(grid: Grid) -> Suite:
    """Forward and forward + backward of fnet, spectral, local and top-k attention."""
    cases = [
        dataclasses.replace(case, impl=impl)
        for direction in ("forward", "forward_backward")
        if grid.wants(direction)
        for case in _subjects(grid)
        for case in [dataclasses.replace(case, direction=direction)]
        for impl in (_impls(case) if grid.contenders else implementations(case))
    ]
    with_floor: list[Case] = []
    for case in cases:
        if not with_floor or with_floor[-1].group != case.group:
            with_floor.append(dataclasses.replace(case, mixer=COPY, impl="torch"))
        with_floor.append(case)
    return Suite(
        name="kernels",
        about="every op and implementation against what a user would otherwise run",
        cases=tuple(with_floor),
        min_samples=9,
        max_samples=60,
        seconds_per_case=0.3,
        max_seconds_per_case=3.0,
    )


def _impls(case: Case) -> list[str]:
    assert case.op is not None
    others = [
        name
        for name in everyday(case.op)
        if not (name in WHOLE_SCORES and case.seq_len > NAIVE_TOPK_MOST and case.device == "cpu")
        and not (name == "flex" and case.device == "cpu" and case.direction != "forward")
    ]
    return [*others, *implementations(case)]


def _subjects(grid: Grid) -> Iterator[Case]:
    """One case for each op and shape."""
    wanted = grid.mixers or OPS

    def case(op: str, batch: int, seq_len: int, dim: int, **knobs: int) -> Case:
        return Case(
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
            **knobs,  # type: ignore[arg-type]
        )

    def lengths(shapes: tuple[Shape, ...]) -> list[Shape]:
        return [s for s in shapes if grid.seq_lens is None or s[1] in grid.seq_lens]

    if "fnet" in wanted:
        for shape in lengths(FNET_GPU if grid.on_gpu else FNET_CPU):
            yield case("fnet", *shape)
    if "spectral" in wanted:
        for shape in lengths(SPECTRAL_GPU if grid.on_gpu else SPECTRAL_CPU):
            for modes in (MODES, shape[1] // 2 + 1):
                yield case("spectral", *shape, modes=modes)
    width = HEADS * HEAD_WIDTH
    if grid.on_gpu:
        settings = [(b, n, window, topk) for b, n, window, topk in ATTENTION_GPU]
    else:
        settings = [
            (1, n, window, 32) for n in (512, 1024, 2048, 4096, 8192) for window in (64, 128, 512)
        ]
    if grid.seq_lens is not None:
        settings = [one for one in settings if one[1] in grid.seq_lens]
    if "local" in wanted:
        for batch, n, window, _ in settings:
            yield case("local_attention", batch, n, width, window=window)
    if "topk" in wanted:
        for batch, n, topk in dict.fromkeys((b, n, topk) for b, n, _, topk in settings):
            yield case("topk_attention", batch, n, width, topk=topk)

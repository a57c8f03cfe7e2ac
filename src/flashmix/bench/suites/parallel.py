"""``parallel``: each mixer's tokens over several ranks, against one of them alone."""

from __future__ import annotations

import dataclasses
import itertools

import torch

from flashmix.bench.case import COPY, BenchmarkCase, Suite
from flashmix.bench.suites.grid import Grid, declared
from flashmix.errors import ArgumentError
from flashmix.mixers.registry import registered_mixers
from flashmix.tasks.distributed import launched, launched_world

GRAPHS = ("forward", "forward_backward")
"""Directions that are replayed as CUDA graphs too: a backward alone runs where its forward did."""


def ranks_of(grid: Grid) -> int:
    """Ranks: as given, as torchrun started, as this machine has GPUs, two at least."""
    gpus = torch.cuda.device_count() if grid.on_gpu else 0
    return grid.ranks or (launched_world() if launched() else max(2, gpus))


def doublings(ranks: int) -> list[int]:
    """2, 4, ... below ``ranks``, and ``ranks``."""
    return [*(1 << i for i in range(1, ranks.bit_length()) if 1 << i < ranks), ranks]


def longest_sequences(device: str) -> dict[str, int]:
    """Tokens beyond which a mixer would take the rest of the run's time; --mixers goes on."""
    return {
        str(kind.benchmarks.parallel): most
        for kind in registered_mixers().values()
        for one, most in kind.benchmarks.longest_sharded
        if one == device
    }


def parallel(grid: Grid) -> Suite:
    """Forward + backward of one rank at N, and of P ranks at N (strong) and P N (weak scaling).

    On GPUs, one rank and P at N as CUDA graphs too.
    """
    ranks, longest = ranks_of(grid), longest_sequences(grid.device)
    if ranks < 2:
        raise ArgumentError(
            f"suite 'parallel' compares with one rank; --ranks must be 2 or more, got {ranks}"
        )
    lengths = grid.seq_lens or ((16384, 131072, 1048576) if grid.on_gpu else (2048, 16384, 131072))
    cases: list[BenchmarkCase] = []
    shorter: dict[str, int] = {}
    for direction in grid.directions or ("forward_backward",):
        if direction not in ("forward", "backward", "forward_backward"):
            continue
        copies = [
            BenchmarkCase(
                suite="parallel",
                mixer=COPY,
                impl="torch",
                direction=direction,
                batch=grid.batch or 1,
                seq_len=seq_len,
                dim=grid.dims[0] if grid.dims else (768 if grid.on_gpu else 256),
                num_heads=grid.num_heads or (12 if grid.on_gpu else 4),
                dtype=grid.dtype or ("bfloat16" if grid.on_gpu else "float32"),
                device=grid.device,
                seed=grid.seed,
                ranks=1,
            )
            for seq_len in lengths
        ]
        cases += copies
        for mixer, copy in itertools.product(grid.mixers or declared("parallel"), copies):
            if not grid.mixers and copy.seq_len > longest.get(mixer, copy.seq_len):
                shorter[mixer] = longest[mixer]
                continue
            alone = dataclasses.replace(copy, mixer=mixer, impl="auto")
            cases.append(alone)
            for count in doublings(ranks):
                over = dataclasses.replace(alone, ranks=count)
                weak = dataclasses.replace(over, seq_len=count * copy.seq_len, weak=True)
                cases += [over, weak]
            if grid.on_gpu and direction in GRAPHS:
                cases += [
                    dataclasses.replace(alone, ranks=count, graph=True)
                    for count in (1, *doublings(ranks))
                ]
    cuts = ", ".join(f"{mixer} up to N = {most:,}" for mixer, most in shorter.items())
    notes = (f"To keep the run short: {cuts}. Named by --mixers they go on.",) if cuts else ()
    return Suite(
        name="parallel",
        about=f"each mixer with its tokens over {ranks} ranks, against one of them alone",
        cases=tuple(cases),
        min_samples=grid.passes or 5,
        max_samples=grid.passes or 15,
        seconds_per_case=0.5 if grid.on_gpu else 1.0,
        max_seconds_per_case=3.0,
        notes=notes,
    )

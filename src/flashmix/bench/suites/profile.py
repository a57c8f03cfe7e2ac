"""``profile``: one encoder as a user calls it; what swaps would give, and what else would."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from flashmix.bench.case import BenchmarkCase, Direction, Mode, Suite
from flashmix.bench.profiling.catalogue import Sizes, named_config, sizes_of
from flashmix.bench.suites.grid import Grid
from flashmix.bench.suites.model import can_unpad
from flashmix.errors import ArgumentError
from flashmix.mixers import parse_pattern

MODEL = "minilm-l6"
MIXERS = ("fnet", "spectral", "local(window=128)")
KEPT_LAYERS = 2
"""Attention layers that the last of the patterns keeps."""

LENGTH_CPU, LENGTH_GPU = 128, 512
SWEEP_CPU, SWEEP_GPU = (128, 512, 2048), (128, 512, 2048, 8192)
FLOPS_CPU, FLOPS_GPU = 4.5e10, 1e13
"""Operations of the projections and MLPs in one call, which decide the batch where none is given:
a call then takes about half a second on two cores."""
BATCHES_CPU, BATCHES_GPU = (4, 32), (8, 128)

MODES_CPU: tuple[Mode, ...] = ("compile", "int8", "onnx", "onnx-int8", "openvino")
MODES_GPU: tuple[Mode, ...] = ("compile", "reduce-overhead")
"""What is done to the vanilla model; a pattern is run so where ``--modes`` asks for it."""
SECONDS_LIMIT = 400.0
"""A model that is compiled or exported makes no progress meanwhile."""


def profile(grid: Grid) -> Suite:
    """The vanilla model and its parts, free mixing, each pattern, and every alternative."""
    name = _name(grid)
    config = grid.config or named_config(name)
    sizes = sizes_of(config, name)
    return Suite(
        name="profile",
        about="one encoder: where its time goes, what swaps would give, and what else would",
        cases=tuple(_cases(grid, name, config, sizes)),
        min_samples=5,
        max_samples=25,
        seconds_per_case=0.6,
        max_seconds_per_case=2.5,
        case_seconds_limit=SECONDS_LIMIT,
        notes=tuple(_notes(grid, name, sizes)),
    )


def _name(grid: Grid) -> str:
    if grid.models and len(grid.models) > 1:
        raise ArgumentError("suite 'profile' takes one model at a time")
    return grid.models[0] if grid.models else MODEL


def _notes(grid: Grid, name: str, sizes: Sizes) -> Iterator[str]:
    yield (
        "Weights are random, since speed does not depend on them; the model has no head. Times are "
        "what the caller waits: Python's part and the device's."
    )
    yield (
        "Mixing free: q, k and v and the mixing are gone, the output projection, norms and MLPs "
        "stay. No swap can be faster."
    )
    yield (
        "Parts are shares of calls of their own, in which each module is timed; modules that run "
        "compiled or in another engine are not divided."
    )
    longest = max(n for _, n in _shapes(grid, sizes))
    if sizes.positions is not None and sizes.positions < longest:
        yield (
            f"{name} has positions for {sizes.positions} tokens; its table was extended for "
            f"what is measured beyond, up to {longest}."
        )
    if not sizes.fused:
        yield f"transformers has no fused attention (SDPA) for {name}: eager is its baseline."
    if grid.about_data:
        yield f"Lengths are those of {grid.about_data}"
    elif sizes.tokens is None:
        yield "Lengths are drawn from N/4 to N, once per seed; --data takes those of your texts."
    if not can_unpad() and sizes.tokens is None:
        yield "This version of flashmix cannot remove padding (unpad), so that is not measured."
    if grid.on_gpu:
        yield "int8, ONNX Runtime and OpenVINO are measured on the CPU only."


def _batch(grid: Grid, sizes: Sizes, seq_len: int) -> int:
    """How many sequences keep a call short, where the user does not say."""
    if grid.batch is not None:
        return grid.batch
    flops = FLOPS_GPU if grid.on_gpu else FLOPS_CPU
    least, most = BATCHES_GPU if grid.on_gpu else BATCHES_CPU
    fitting = flops / sizes.flops_per_token / seq_len
    return max(least, min(most, 1 << max(0, int(fitting).bit_length() - 1)))


def _shapes(grid: Grid, sizes: Sizes) -> list[tuple[int, int]]:
    """(B, N): what is profiled, then full batches of other lengths with as many tokens."""
    if grid.token_lengths is not None:
        shape = (len(grid.token_lengths), max(grid.token_lengths))
    else:
        seq_len = grid.seq_len or default_length(grid.on_gpu, sizes)
        shape = (_batch(grid, sizes, seq_len), seq_len)
    if sizes.tokens is not None:
        return [shape]
    tokens = shape[0] * shape[1]
    lengths = grid.seq_lens or (SWEEP_GPU if grid.on_gpu else SWEEP_CPU)
    if grid.seq_lens is None:  # a call takes as long as the profiled one, or twice
        lengths = tuple(n for n in lengths if n <= 2 * tokens)
    return [shape, *((max(1, tokens // n), n) for n in lengths)]


def default_length(on_gpu: bool, sizes: Sizes) -> int:
    """N where the user does not say."""
    if sizes.tokens is not None:
        return sizes.tokens
    usual = LENGTH_GPU if on_gpu else LENGTH_CPU
    return min(usual, sizes.positions or usual)


def _cases(grid: Grid, name: str, config: str, sizes: Sizes) -> Iterator[BenchmarkCase]:
    if sizes.tokens is not None and (grid.seq_len or sizes.tokens) != sizes.tokens:
        raise ArgumentError(
            f"{name} sees {sizes.tokens} tokens in a picture; leave the length away"
        )
    (batch, seq_len), *sweep = _shapes(grid, sizes)
    data = grid.token_lengths is not None
    whole = BenchmarkCase(
        suite="profile",
        mixer="attention",
        impl="sdpa" if sizes.fused else "naive",
        direction="inference",
        batch=batch,
        seq_len=seq_len,
        dim=sizes.dim,
        num_heads=sizes.heads,
        dtype=grid.dtype or ("bfloat16" if grid.on_gpu else "float32"),
        device=grid.device,
        seed=grid.seed,
        subject="model",
        model=name,
        config=config,
    )
    called = whole
    if data:
        called = dataclasses.replace(whole, lengths="data", token_lengths=grid.token_lengths)
    elif sizes.tokens is None and grid.wants_lengths("uniform"):
        called = dataclasses.replace(whole, lengths="uniform")
    middle = sorted(grid.token_lengths)[batch // 2] if grid.token_lengths else seq_len
    alone = dataclasses.replace(whole, batch=1, seq_len=middle, direction="inference_b1")
    trained = dataclasses.replace(called, direction="train_step")
    patterns = _patterns(grid, sizes)
    groups = [called, alone] + [trained] * grid.train
    for case in groups:
        if _wants(grid, case.direction):
            yield from _compared(grid, case, patterns)
    if _wants(grid, "inference"):
        for batch, n in sweep:
            if called.lengths == "full" and (batch, n) == (called.batch, called.seq_len):
                continue  # measured already
            yield from _at_length(grid, dataclasses.replace(whole, batch=batch, seq_len=n))


def _wants(grid: Grid, direction: Direction) -> bool:
    return grid.wants(direction) or (direction == "inference" and grid.wants("forward"))


def _patterns(grid: Grid, sizes: Sizes) -> list[str]:
    """The patterns to swap in; each must fit the model's layers."""
    if grid.mixers is not None:
        for text in grid.mixers:
            for spec in parse_pattern(text, sizes.depth):
                spec.config(sizes.dim, num_heads=sizes.heads)
        return list(grid.mixers)
    rest = sizes.depth - KEPT_LAYERS
    return [*MIXERS, *([f"fnet*{rest},attention*{KEPT_LAYERS}"] if rest > 0 else [])]


def _modes(grid: Grid, direction: str) -> tuple[Mode, ...]:
    modes = MODES_GPU if grid.on_gpu else MODES_CPU
    return tuple(mode for mode in modes if direction != "train_step" or mode == "compile")


def _compared(grid: Grid, case: BenchmarkCase, patterns: list[str]) -> Iterator[BenchmarkCase]:
    """One group: the vanilla models, free mixing, unpadding, each pattern, the alternatives."""
    padded = case.lengths != "full" and can_unpad()
    if case.impl == "sdpa":
        yield dataclasses.replace(case, impl="naive")
    yield case
    for unpad in (False, True) if padded else (False,):
        yield dataclasses.replace(case, impl="free", unpad=unpad)
    if padded:
        yield dataclasses.replace(case, impl="auto", unpad=True)
    modes = _modes(grid, case.direction)
    for text in patterns:
        swapped = dataclasses.replace(case, mixer=text, impl="auto")
        yield swapped
        if padded and text != "attention":
            yield dataclasses.replace(swapped, unpad=True)
        for mode in modes:
            if mode in (grid.modes or ()):
                yield dataclasses.replace(swapped, mode=mode)
    for mode in modes:
        yield dataclasses.replace(case, mode=mode)


def _at_length(grid: Grid, case: BenchmarkCase) -> Iterator[BenchmarkCase]:
    """What says from which length on a swap can gain more than what needs no training."""
    yield case
    yield dataclasses.replace(case, impl="free")
    if not grid.on_gpu:
        yield dataclasses.replace(case, mode="int8")

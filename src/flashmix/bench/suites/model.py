"""``model``: whole encoders of transformers as called, with the attention they have and others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import flashmix.hf
from flashmix.bench.case import BenchmarkCase, Lengths, Suite
from flashmix.bench.encoders import SIZES, VISION, VISION_TOKENS
from flashmix.bench.suites.grid import BASELINES, Grid
from flashmix.errors import ArgumentError, unknown_choice

MIXERS = ("fnet", "spectral(modes=128)", "local(window=128)", "fnet*10,attention*2")
"""Patterns longer than a model's layers are left out of it."""
LEAST_DEPTH = {"fnet*10,attention*2": 12}
SHALLOW = "fnet,attention"
"""In their place, for models with fewer layers: attention last, repeated."""

MODELS_GPU, MODELS_CPU = ("bert-base",), ("minilm-l6", "bert-tiny")
SHAPES_GPU = ((128, 128), (32, 512), (8, 2048), (4, 4096))
SHAPES_CPU = ((32, 128),)
"""Batch and tokens."""
PICTURES = 32
"""Batch of the models that see pictures."""
DIRECTIONS = ("inference", "inference_b1", "train_step")


def model(grid: Grid) -> Suite:
    """Inference, a batch of one and a training step; full and padded batches; unpadded too."""
    return Suite(
        name="model",
        about="whole encoders as called: BERT, MiniLM, ViT with each mixer, full and padded",
        cases=tuple(_cases(grid)),
        min_samples=7,
        max_samples=40,
        seconds_per_case=0.3,
        max_seconds_per_case=6.0,
        case_seconds_limit=60.0 if _modes(grid) == ("eager",) else 400.0,
        notes=(
            "Times are what the caller waits: Python's part and the device's.",
            "Only mode eager is measured unless --modes asks for compile or reduce-overhead.",
            "Models by --models: " + ", ".join(SIZES) + ".",
        ),
    )


def _wants(grid: Grid, direction: str) -> bool:
    """A model's forward is inference."""
    wanted: Sequence[str] = grid.directions or DIRECTIONS
    return direction in wanted or (direction == "inference" and "forward" in wanted)


def _modes(grid: Grid) -> tuple[str, ...]:
    if "reduce-overhead" in (grid.modes or ()) and not grid.on_gpu:
        raise ArgumentError(
            "mode 'reduce-overhead' replays CUDA graphs, which a CPU has not; take mode 'compile'"
        )
    return grid.modes or ("eager",)


def _shapes(grid: Grid, model: str) -> list[tuple[int, int]]:
    if model in VISION:
        lengths = grid.seq_lens or (VISION_TOKENS,)
        return [(grid.batch or PICTURES, VISION_TOKENS)] if VISION_TOKENS in lengths else []
    known = SHAPES_GPU if grid.on_gpu else SHAPES_CPU
    if grid.seq_lens is None:
        return [(grid.batch or batch, n) for batch, n in known]
    tokens = known[0][0] * known[0][1]
    batches = {n: batch for batch, n in known}
    return [(grid.batch or batches.get(n, max(1, tokens // n)), n) for n in grid.seq_lens]


def _cases(grid: Grid) -> Iterator[BenchmarkCase]:
    _modes(grid)
    for model in grid.models or (MODELS_GPU if grid.on_gpu else MODELS_CPU):
        if model not in SIZES:
            raise unknown_choice("model", model, SIZES)
        width, depth, heads = SIZES[model]
        for batch, seq_len in _shapes(grid, model):
            for mode in grid.modes or ("eager",):
                for direction in DIRECTIONS:
                    if not _wants(grid, direction):
                        continue
                    alone = direction == "inference_b1"
                    both: tuple[Lengths, ...] = ("full", "uniform")
                    if alone or model in VISION:
                        both = ("full",)
                    for lengths in filter(grid.wants_lengths, both):
                        for mixer, impl, unpad in _subjects(grid, depth, lengths, mode):
                            yield BenchmarkCase(
                                suite="model",
                                mixer=mixer,
                                impl=impl,
                                direction=direction,  # type: ignore[arg-type]
                                batch=1 if alone else batch,
                                seq_len=seq_len,
                                dim=width,
                                num_heads=heads,
                                dtype=grid.dtype or ("bfloat16" if grid.on_gpu else "float32"),
                                device=grid.device,
                                seed=grid.seed,
                                subject="model",
                                model=model,
                                mode=mode,
                                lengths=lengths,
                                unpad=unpad,
                            )


def _subjects(
    grid: Grid, depth: int, lengths: Lengths, mode: str
) -> Iterator[tuple[str, str, bool]]:
    """(mixers, impl, unpad): the vanilla models, and each pattern; unpadded where that differs.

    A compiled model runs its padded form.
    """
    for mixer, impl in BASELINES:
        yield mixer, impl, False
    unpads = lengths == "uniform" and mode == "eager" and can_unpad()
    if unpads and "attention" not in (grid.mixers or ()):
        yield "attention", "auto", True
    for text in grid.mixers or MIXERS:
        if grid.mixers is None and depth < LEAST_DEPTH.get(text, 0):
            text = SHALLOW
        yield text, "auto", False
        if unpads:
            yield text, "auto", True


def can_unpad() -> bool:
    """Whether this version's swap removes padding."""
    return "unpad" in inspect.signature(flashmix.hf.swap).parameters

"""A profile as asked for: what the command line and :func:`flashmix.profile` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashmix.bench.case import Mode
from flashmix.bench.measure import measure
from flashmix.bench.profiling import lengths as texts
from flashmix.bench.profiling.catalogue import NAMED, config_text, model_config, sizes_of
from flashmix.bench.runner import Listener
from flashmix.bench.store import Row
from flashmix.bench.suites.grid import Grid
from flashmix.errors import ArgumentError
from flashmix.hf.interface import transformers
from flashmix.tasks.tokens import load_tokenizer

LONGEST = 100_000
"""Tokens of a text, for models whose positions have no end."""
BATCH_OF_DATA = 32


def profile_grid(
    model: str | PathLike[str],
    *,
    seq_len: int | None = None,
    batch: int | None = None,
    data: Path | None = None,
    column: str = "text",
    tokenizer: str | None = None,
    **options: Any,
) -> Grid:
    """What suite ``profile`` is to measure of a model, at a shape or at the lengths of texts.

    Args:
        model: a name of NAMED, a folder with config.json, or a hub id.
        seq_len: N; with ``data``, where texts are cut.
        batch: B; with ``data``, how many of its quantiles.
        data: a parquet, CSV or text file.
        column: of ``data`` that holds the texts.
        tokenizer: a folder or hub id; the model's own where None.
        **options: further fields of the grid.

    Raises:
        ArgumentError: the model, the file or the tokenizer is none.
        FlashmixError: the file does not hold what its name says.
        MissingDependencyError: transformers, or pyarrow for a parquet file, is not installed.
    """
    transformers()
    name = str(model)
    config = model_config(model)
    sizes = sizes_of(config, name)
    grid = Grid(models=(name,), config=config, batch=batch, seq_len=seq_len, **options)
    if data is None:
        return grid
    if sizes.tokens is not None:
        raise ArgumentError(f"{name} sees pictures, which have no lengths; leave --data away")
    if tokenizer is None and name in NAMED:
        raise ArgumentError(
            f"{name} is a configuration without a tokenizer; name one with --tokenizer, for "
            "example the folder of a model with the same vocabulary"
        )
    held = texts.read_texts(data, column)
    longest = seq_len or sizes.positions or LONGEST
    found = texts.count_tokens(load_tokenizer(tokenizer or name), held, longest)
    return Grid(
        models=(name,),
        config=config,
        token_lengths=texts.typical_batch(found, batch or BATCH_OF_DATA),
        about_data=texts.describe(data, found, len(held), longest),
        **options,
    )


def profile(
    model: str | PathLike[str] | nn.Module,
    inputs: Mapping[str, Tensor] | None = None,
    *,
    mixers: Sequence[str] | None = None,
    modes: Sequence[Mode] = (),
    train: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    out: Path | None = None,
    listener: Listener = lambda progress: None,
) -> list[Row]:
    """Measure what swaps would give a model on this machine, and what else would; in minutes.

        >>> model = AutoModel.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
        >>> rows = flashmix.profile(model, tokenizer(texts, padding=True, return_tensors="pt"))
        >>> fast = min((r for r in rows if r["status"] == "ok"), key=lambda r: r["median_ms"])

    Speed does not depend on weights: workers build the model anew from its config, with random
    weights and without its head. The model itself is left as it is.

    Args:
        model: an encoder of transformers, or its folder, hub id, or name ("bert-base", ...).
        inputs: a batch as the model takes it: its shape, and the lengths in its attention_mask
            [B, N], are what is measured; a usual shape where None.
        mixers: patterns to swap in, as :func:`flashmix.swap` takes them; the usual ones where None.
        modes: "compile", "int8", ...: how every pattern is to run as well.
        train: measure training steps too.
        device: "cpu" or "cuda"; the model's own, or a GPU where there is one, when None.
        dtype: name of a torch dtype; the model's own, else float32 on a CPU, bfloat16 on a GPU.
        threads: of PyTorch.
        out: a folder to keep the run in, for ``flashmix report``; nothing is kept when None.
        listener: hears progress; see :func:`flashmix.bench.run_suite`.

    Returns:
        The rows, one for each case; what failed or is not installed has a status that is not "ok"
        and says why in ``error``.

    Raises:
        ArgumentError: the model, the inputs or a pattern is none that can be profiled.
        FlashmixError: ``out`` cannot be written.
        MissingDependencyError: transformers is not installed.
    """
    held: dict[str, Any] = {}
    if isinstance(model, nn.Module):
        config = getattr(model, "config", None)
        if not isinstance(model, transformers().PreTrainedModel):
            raise ArgumentError(
                f"profile: model must be a model of transformers, got {type(model).__name__}"
            )
        name = type(model).__name__
        held = {"models": (name,), "config": config_text(config, name)}
        device = device or torch.device(model.device).type
        dtype = dtype or str(model.dtype).removeprefix("torch.")
    else:
        held = {"models": (str(model),), "config": model_config(model)}
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    grid = Grid(
        device=device,
        dtype=dtype,
        mixers=None if mixers is None else tuple(mixers),
        modes=tuple(modes) or None,
        train=train,
        **held,
        **({} if inputs is None else _shape(inputs)),
    )
    return measure("profile", grid, out, threads=threads, listener=listener).rows


def _shape(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of the grid that a batch decides."""
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.numel():
        lengths = mask.bool().sum(1)
        if int(lengths.min()) < 1:
            raise ArgumentError("profile: a sequence of inputs has no real token in its mask")
        if bool((lengths < mask.shape[1]).any()):
            return {"token_lengths": tuple(lengths.tolist())}
        return {"batch": mask.shape[0], "seq_len": mask.shape[1], "lengths": ("full",)}
    if isinstance(ids, Tensor) and ids.dim() == 2 and ids.numel():
        return {"batch": ids.shape[0], "seq_len": ids.shape[1], "lengths": ("full",)}
    pictures = inputs.get("pixel_values")
    if isinstance(pictures, Tensor) and pictures.dim() == 4:
        return {"batch": pictures.shape[0]}
    raise ArgumentError(
        "profile: inputs must hold input_ids [B, N], with their attention_mask, or pixel_values "
        "[B, C, H, W]"
    )

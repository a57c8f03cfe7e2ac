"""Tiny inputs of a model, made from its config.

Shapes: B batch, N tokens, C channels, H height, W width, T frames.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TOKENS = 5
IMAGE = 64
"""Height and width of an image where the config has none."""


def tiny_inputs(model: Any) -> Iterator[dict[str, Tensor]]:
    """Inputs that the model may take, the likeliest first; none where their kind is not known.

    Texts are ids [2, 5], the second with two tokens of padding. Images are of the config's size.
    """
    name = model.main_input_name
    make = {"input_ids": _texts, "pixel_values": _images}.get(name)
    if make is None and name in ("input_values", "input_features"):
        make = _sounds
    takes = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(0)
    for data in () if make is None else make(model, generator):
        inputs = {name: data.to(model.device, model.dtype if data.is_floating_point() else None)}
        if "attention_mask" in takes and name != "pixel_values":
            mask = torch.ones(data.shape[:2], dtype=torch.long, device=model.device)
            mask[1:, 3 * mask.shape[1] // TOKENS :] = 0
            yield {**inputs, "attention_mask": mask}
        yield inputs


def _texts(model: Any, generator: torch.Generator) -> Iterator[Tensor]:
    """Ids [2, N], padded as their mask says."""
    words, pad = (getattr(model.config, name, None) for name in ("vocab_size", "pad_token_id"))
    if not isinstance(words, int):
        return
    ids = torch.randint(words, (2, TOKENS), generator=generator)
    if isinstance(pad, int) and 0 <= pad < words:
        ids[ids == pad] = (pad + 1) % words
        ids[1:, 3:] = pad
    yield ids


def _images(model: Any, generator: torch.Generator) -> Iterator[Tensor]:
    """An image [1, C, H, W]; videos [1, T, C, H, W], or their frames as a batch."""
    config = model.config
    size = getattr(config, "image_size", None) or IMAGE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    shape = (getattr(config, "num_channels", 3), height, width)
    yield torch.randn(1, *shape, generator=generator)
    if frames := getattr(config, "num_frames", None):
        yield torch.randn(1, frames, *shape, generator=generator)
        yield torch.randn(frames, *shape, generator=generator)


def _sounds(model: Any, generator: torch.Generator) -> Iterator[Tensor]:
    """Waves [2, N] long enough for five frames, or spectrograms [2, T, C] or [2, C, T]."""
    config = model.config
    if hasattr(config, "conv_kernel"):
        length = TOKENS
        for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1], strict=True):
            length = (length - 1) * stride + kernel
        yield torch.randn(2, length, generator=generator)
    names = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel")
    bins = next((found for name in names if (found := getattr(config, name, None))), None)
    if bins:
        frames = getattr(config, "max_length", None) or TOKENS
        yield torch.randn(2, frames, bins, generator=generator)
        if frames := getattr(config, "max_source_positions", None):
            yield torch.randn(2, bins, 2 * frames, generator=generator)

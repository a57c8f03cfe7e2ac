"""The dtype that transforms and scores compute in, whatever autocast is on."""

from __future__ import annotations

import torch


def transform_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 where an input is float64, otherwise float32: FFTs take no half precision."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def full_precision(device: torch.device) -> torch.autocast:
    """A context in which products keep the dtype of their operands, autocast or not."""
    return torch.autocast(device.type, enabled=False)

"""The dtype that transforms compute in."""

from __future__ import annotations

import torch


def transform_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 where an input is float64, otherwise float32: FFTs take no half precision."""
    return torch.float64 if torch.float64 in dtypes else torch.float32

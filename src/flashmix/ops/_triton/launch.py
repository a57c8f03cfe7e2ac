"""What launches share."""

from __future__ import annotations

import functools

import torch


def precision(dtype: torch.dtype) -> str:
    """How products keep float32 accuracy on tensor cores; half types need nothing."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; the interpreter has one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count

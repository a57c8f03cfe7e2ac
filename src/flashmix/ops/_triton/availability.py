"""Whether Triton kernels can run here, and on which devices.

Triton decides when it is imported whether kernels are compiled or interpreted, so
``TRITON_INTERPRET=1`` must be in the environment of the process, as in its own documentation.
"""

from __future__ import annotations

import importlib.util
import os

import torch

from flashmix.ops.dispatch.signature import Signature

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# The interpreter reads tensors of either device; compiled kernels only those of a GPU.
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)

# The interpreter multiplies bfloat16 as if it were an integer type.
DTYPES = (torch.float32, torch.float16) + (() if INTERPRETED else (torch.bfloat16,))


_INSTALLED = importlib.util.find_spec("triton") is not None


def missing() -> str | None:
    """What is missing for Triton kernels, and how to get it; None where nothing is."""
    if _INSTALLED:
        return None
    return "needs Triton, which is not installed; run: pip install 'flashmix[triton]'"


MOST_WIDTH = 256
"""The widest head whose tiles fit in shared memory."""


def too_wide(signature: Signature) -> str | None:
    """Why heads [B, H, N, dh] do not fit the kernels; None where they do."""
    width = signature.shape[3]
    return None if width <= MOST_WIDTH else f"takes heads up to {MOST_WIDTH} wide, not {width}"

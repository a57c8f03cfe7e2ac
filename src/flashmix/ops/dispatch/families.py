"""The two families of kernels, native code and Triton: where they run is said once, here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flashmix.ops._cpu import library
from flashmix.ops._triton import availability
from flashmix.ops.dispatch.implementation import Implementation
from flashmix.ops.dispatch.signature import Signature

LONGEST_BY_PRODUCTS = 16_384
"""Above, a transform of N tokens as a matrix product takes too many operations, N each."""


def one_call_a_length(signature: Signature) -> str | None:
    """Why ``auto`` passes over what calls once for each distinct length of a padded batch."""
    if signature.device.type == "cuda" and signature.options.get("masked"):
        return "runs one call for each distinct length, and the host waits in between"
    return None


def cpu_implementation(run: Callable[..., Tensor], summary: str, **rest: Any) -> Implementation:
    """Native code, ``impl="cpu"``; ``rest`` are further fields of :class:`Implementation`."""
    return Implementation(
        name="cpu",
        run=run,
        summary=summary,
        devices=library.DEVICES,
        missing=library.missing,
        **rest,
    )


def triton_implementation(
    run: Callable[..., Tensor], summary: str, *, name: str = "triton", **rest: Any
) -> Implementation:
    """Triton kernels; ``run`` imports them when it is called first.

    ``rest`` are further fields of :class:`Implementation`.
    """
    return Implementation(
        name=name,
        run=run,
        summary=summary,
        devices=availability.DEVICES,
        dtypes=availability.DTYPES,
        missing=availability.missing,
        **rest,
    )

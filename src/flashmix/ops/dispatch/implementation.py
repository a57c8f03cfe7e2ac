"""An implementation of an op: how it is called, and which signatures it supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from flashmix._core.machine import shared_memory
from flashmix.ops._checks import FLOATING
from flashmix.ops._compile import constant_in_graphs
from flashmix.ops.dispatch.signature import Signature


def _nothing_missing() -> str | None:
    return None


def _nothing_to_say(signature: Signature) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to compute an op.

    Attributes:
        name: what ``impl=`` calls it.
        run: takes what the op's public function hands over, and gives the result.
        summary: how it works, in a line.
        devices: the device types that it runs on.
        dtypes: of the first argument.
        missing: None where it can run, else the sentence that says what is not installed and how
            to get it.
        unsupported_reason: why it cannot run a signature's shape and options; None where it can.
        describe_plan: how it computes a signature, where it has several algorithms.
        deprioritized_reason: why ``auto`` passes over it though it could run a signature.
        packed: takes packed tokens, [T, D] or [T, H, dh], as ``run`` takes padded ones, with
            ``cu_seqlens`` (int32 [S + 1]) and ``max_seqlen`` (an integer, or on a GPU None) where
            ``run`` has the mask. The tokens are padded for those without.
        grouped_heads: whether it takes fewer heads of keys than of queries; the others get the
            keys and values repeated.
        shared_memory: bytes that a block of its kernels needs at most, by the bytes of an element;
            a GPU that has less does not run it.
        launches: kernels of a forward on a GPU, about; of two equal costs the fewer win.
        scales_with: the size option that its time grows in proportion to, beyond what was
            measured; the times of the others do not.
    """

    name: str
    run: Callable[..., Any]
    summary: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] = FLOATING
    missing: Callable[[], str | None] = _nothing_missing
    unsupported_reason: Callable[[Signature], str | None] = _nothing_to_say
    describe_plan: Callable[[Signature], str | None] = _nothing_to_say
    deprioritized_reason: Callable[[Signature], str | None] = _nothing_to_say
    packed: Callable[..., Any] | None = None
    shared_memory: Mapping[int, int] = field(default_factory=dict)
    grouped_heads: bool = False
    launches: int = 1
    scales_with: str | None = None

    def describe(self, signature: Signature) -> str:
        """The summary, and the algorithm for ``signature`` where there are several."""
        plan = self.describe_plan(signature)
        return self.summary if plan is None else f"{self.summary} ({plan})"

    def passed_over_reason(self, signature: Signature) -> str | None:
        """Why ``auto`` prefers others that can run ``signature``; None where it does not."""
        return self.deprioritized_reason(signature) or self.pads_reason(signature)

    def pads_reason(self, signature: Signature) -> str | None:
        """Says so where ``signature`` is of packed tokens, and they are padded for it."""
        if self.packed is None and signature.options.get("packed"):
            return "takes padded tokens: packed ones are scattered for it, and gathered after"
        return None

    def unavailable_reason(
        self, dtype: torch.dtype, device: str, machine: str | None = None
    ) -> str | None:
        """Why it runs nothing of that dtype on that type of device; None where it does.

        What another ``machine`` has installed is not known here: there nothing is missing.
        """
        if device not in self.devices:
            return f"runs on {' and '.join(self.devices)}, not on {device}"
        if dtype not in self.dtypes:
            return f"does not support {dtype}"
        return None if machine is not None else self.missing()

    def refusal(self, signature: Signature) -> str | None:
        """Why it cannot run ``signature``; None where it can."""
        place = signature.device.type
        unavailable = self.unavailable_reason(signature.dtype, place, signature.machine)
        return unavailable or self._too_little_room(signature) or self.unsupported_reason(signature)

    def _too_little_room(self, signature: Signature) -> str | None:
        """Why the GPU here cannot hold the kernels' tiles; None where it can."""
        needed = self.shared_memory.get(signature.dtype.itemsize)
        if needed is None or signature.machine is not None:
            return None
        there = _shared_memory(signature.device)
        if there is None or there >= needed:
            return None
        return (
            f"needs {needed / 1024:.4g} KiB of shared memory for {signature.dtype}, of which this "
            f"GPU has {there / 1024:.4g} KiB a block"
        )


@constant_in_graphs
def _shared_memory(device: torch.device) -> int | None:
    return shared_memory(device)

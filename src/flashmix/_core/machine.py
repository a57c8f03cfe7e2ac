"""The names that machines have in tables of measurements."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch


@functools.cache
def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def _gpu_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


def device_name(device: torch.device) -> str | None:
    """The GPU's or the processor's name; None for a GPU that is not there."""
    if device.type == "cpu":
        return cpu_name()
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return _gpu_name(device.index)


@functools.cache
def _gpu_shared_memory(index: int | None) -> int | None:
    place = torch.device("cuda") if index is None else index
    properties = torch.cuda.get_device_properties(place)
    return getattr(properties, "shared_memory_per_block_optin", None)


def shared_memory(device: torch.device) -> int | None:
    """Bytes of shared memory that a block may have on a GPU; None where unknown or not there."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return _gpu_shared_memory(device.index)


@functools.cache
def _gpu_capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def capability(device: torch.device) -> tuple[int, int] | None:
    """A GPU's compute capability, for example (9, 0); None for a CPU or a GPU not there."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return _gpu_capability(device.index)

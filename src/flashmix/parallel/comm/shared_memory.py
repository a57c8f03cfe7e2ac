"""Buffers that the GPUs of one machine write to directly: PyTorch's symmetric memory.

A kernel stores its results in the buffer of the rank that reads them, so that communication
overlaps arithmetic and no message is sent. Barriers on the GPUs order writes and reads.

Used where all ranks are on one machine and each GPU can access the others' memory. The environment
variable ``FLASHMIX_SYMMETRIC_MEMORY=0``, on any rank, selects messages on all of them.
"""

from __future__ import annotations

import datetime
import os
import platform
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashmix.errors import ImplementationError
from flashmix.parallel.comm.graphs import capturing
from flashmix.parallel.comm.ranks import Ranks

ENVIRONMENT = "FLASHMIX_SYMMETRIC_MEMORY"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class SharedMemoryStats:
    """What benchmarks count in this process.

    Attributes:
        written: bytes that kernels have written to other ranks' buffers.
        requested: bytes of the largest buffer that was requested.
    """

    written: int = 0
    requested: int = 0


STATS = SharedMemoryStats()


class SharedMemory:
    """A buffer of one size on every rank of a group, which all of the ranks can write to."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._handle: Any = None
        self._buffer: Tensor | None = None
        self._captured: list[Tensor] = []
        backend = ranks.group._get_backend(torch.device(ranks.device_type))
        timeout: datetime.timedelta = backend.options._timeout
        self._timeout_ms = round(timeout.total_seconds() * 1000)

    def buffer(self, elements: int, dtype: torch.dtype) -> Tensor:
        """The own buffer, [elements]; all ranks request the same size at the same time.

        Raises:
            ImplementationError: the buffer would have to grow while a CUDA graph is captured.
        """
        size = elements * dtype.itemsize
        STATS.requested = max(STATS.requested, size)
        if self._buffer is None or self._buffer.numel() < size:
            if capturing():
                raise ImplementationError(
                    "memory shared by the ranks cannot be allocated while a CUDA graph is "
                    "captured; call the model once with inputs of this size before the capture"
                )
            self._grow(size)
        assert self._buffer is not None
        if capturing() and all(kept is not self._buffer for kept in self._captured):
            self._captured.append(self._buffer)  # the graph's kernels hold its address
        return self._buffer[:size].view(dtype)

    def _grow(self, size: int) -> None:
        from torch.distributed import _symmetric_memory as symmetric

        # No rank may still be writing to the buffer that is freed.
        torch.cuda.synchronize()
        with self._ranks.translate_errors():
            self._ranks.all_gather_ints([0])
            buffer = symmetric.empty(
                size, dtype=torch.uint8, device=torch.device("cuda", torch.cuda.current_device())
            )
            self._handle = symmetric.rendezvous(buffer, self._ranks.group)
        self._buffer = buffer

    def distances(self, dtype: torch.dtype) -> tuple[int, ...]:
        """Distance from this rank's buffer to each rank's, in elements."""
        pointers = self._handle.buffer_ptrs
        own = pointers[self._ranks.rank]
        return tuple((pointer - own) // dtype.itemsize for pointer in pointers)

    def probe(self) -> None:
        """Raise RuntimeError unless this rank reads what every rank writes to its buffer."""
        numbers = self.buffer(self._ranks.size, torch.int64)
        for peer in range(self._ranks.size):
            there = self._handle.get_buffer(peer, (self._ranks.size,), torch.int64, 0)
            there[self._ranks.rank] = 1 + self._ranks.rank
        self.barrier()
        found = numbers.tolist()
        self.barrier()  # no rank writes over it before all have read
        if found != list(range(1, self._ranks.size + 1)):
            raise RuntimeError(f"read {found}")

    def barrier(self) -> None:
        """Wait for all ranks' writes before this call; the GPU waits, not the host."""
        with self._ranks.translate_errors():
            self._handle.barrier(0, self._timeout_ms)


def shared_memory(ranks: Ranks) -> SharedMemory | None:
    """The shared memory of ``ranks``, the same object at each call; None where there is none.

    The first call is collective: all ranks make it at the same time.
    """
    if ranks.shared is None:
        ranks.shared = (_set_up(ranks),)
    memory: SharedMemory | None = ranks.shared[0]
    return memory


def _set_up(ranks: Ranks) -> SharedMemory | None:
    if ranks.device_type != "cuda":
        return None
    boot = _BOOT.read_text() if _BOOT.exists() else ""
    machine = zlib.crc32(f"{platform.node()} {boot}".encode())
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    gpu = zlib.crc32(str(properties.uuid).encode())
    wanted = int(os.environ.get(ENVIRONMENT, "1") != "0")
    machines, gpus, all_wanted = zip(*ranks.all_gather_ints([machine, gpu, wanted]), strict=True)
    if len(set(machines)) > 1 or len(set(gpus)) < ranks.size or not all(all_wanted):
        return None
    memory, reason = SharedMemory(ranks), ""
    try:
        memory.probe()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    if all(row[0] for row in ranks.all_gather_ints([int(not reason)])):
        return memory
    warnings.warn(
        "the ranks' GPUs are on one machine, but cannot access each other's memory"
        + (f" ({reason})" if reason else "")
        + f"; messages are sent instead, which is slower. Set {ENVIRONMENT}=0 to silence this",
        stacklevel=2,
    )
    return None

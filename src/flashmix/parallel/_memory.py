"""Memory that the GPUs of one machine write in each other's: PyTorch's symmetric memory.

A kernel stores what another rank needs where that rank will read it, so that what travels does so
beside the arithmetic, and no message is issued. Barriers on the GPUs say when it is there.

It is used where all ranks are on one machine and each GPU reaches the others'. The environment's
``FLASHMIX_SYMMETRIC_MEMORY=0``, on any rank, keeps to messages.
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
from flashmix.parallel._graphs import capturing
from flashmix.parallel._ranks import Ranks

ENVIRONMENT = "FLASHMIX_SYMMETRIC_MEMORY"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class Use:
    """What measurements ask for, of this process.

    Attributes:
        written: bytes that it has had written in other ranks' buffers.
        asked: bytes of the largest buffer that it asked for.
    """

    written: int = 0
    asked: int = 0


USE = Use()


class SharedMemory:
    """A buffer on every rank of a group, all as long, that all of them write in."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._handle: Any = None
        self._buffer: Tensor | None = None
        self._captured: list[Tensor] = []
        backend = ranks.group._get_backend(torch.device(ranks.device_type))
        timeout: datetime.timedelta = backend.options._timeout
        self._timeout_ms = round(timeout.total_seconds() * 1000)

    def buffer(self, elements: int, dtype: torch.dtype) -> Tensor:
        """The own one, [elements]. All ranks ask for as many at the same time.

        Raises:
            ImplementationError: it would have to grow while a CUDA graph is captured.
        """
        size = elements * dtype.itemsize
        USE.asked = max(USE.asked, size)
        if self._buffer is None or self._buffer.numel() < size:
            if capturing():
                raise ImplementationError(
                    "memory that the ranks share cannot be set up while a CUDA graph is captured; "
                    "call the model once with inputs of this size before"
                )
            self._grow(size)
        assert self._buffer is not None
        if capturing() and all(one is not self._buffer for one in self._captured):
            self._captured.append(self._buffer)  # the graph's kernels know where it is
        return self._buffer[:size].view(dtype)

    def _grow(self, size: int) -> None:
        from torch.distributed import _symmetric_memory as symmetric

        # Nobody may still be writing in what is given up.
        torch.cuda.synchronize()
        with self._ranks.explained():
            self._ranks.tell([0])
            buffer = symmetric.empty(
                size, dtype=torch.uint8, device=torch.device("cuda", torch.cuda.current_device())
            )
            self._handle = symmetric.rendezvous(buffer, self._ranks.group)
        self._buffer = buffer

    def distances(self, dtype: torch.dtype) -> tuple[int, ...]:
        """From this rank's buffer to each rank's, in elements."""
        pointers = self._handle.buffer_ptrs
        own = pointers[self._ranks.rank]
        return tuple((pointer - own) // dtype.itemsize for pointer in pointers)

    def probe(self) -> None:
        """Raise RuntimeError unless what every rank writes here is read here."""
        numbers = self.buffer(self._ranks.size, torch.int64)
        for peer in range(self._ranks.size):
            there = self._handle.get_buffer(peer, (self._ranks.size,), torch.int64, 0)
            there[self._ranks.rank] = 1 + self._ranks.rank
        self.meet()
        found = numbers.tolist()
        self.meet()  # none writes over it before all have read
        if found != list(range(1, self._ranks.size + 1)):
            raise RuntimeError(f"found {found} there")

    def meet(self) -> None:
        """What all ranks wrote before this is there after it; the GPU waits, not the host."""
        with self._ranks.explained():
            self._handle.barrier(0, self._timeout_ms)


def shared_memory(ranks: Ranks) -> SharedMemory | None:
    """The ranks' shared memory, the same object at each call; None where there is none.

    All ranks call it at the same time, the first time.
    """
    if ranks.shared is None:
        ranks.shared = (_first(ranks),)
    memory: SharedMemory | None = ranks.shared[0]
    return memory


def _first(ranks: Ranks) -> SharedMemory | None:
    if ranks.device_type != "cuda":
        return None
    boot = _BOOT.read_text() if _BOOT.exists() else ""
    machine = zlib.crc32(f"{platform.node()} {boot}".encode())
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    gpu = zlib.crc32(str(properties.uuid).encode())
    wanted = int(os.environ.get(ENVIRONMENT, "1") != "0")
    machines, gpus, all_want = zip(*ranks.tell([machine, gpu, wanted]), strict=True)
    if len(set(machines)) > 1 or len(set(gpus)) < ranks.size or not all(all_want):
        return None
    memory, reason = SharedMemory(ranks), ""
    try:
        memory.probe()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    if all(row[0] for row in ranks.tell([int(not reason)])):
        return memory
    warnings.warn(
        "the ranks' GPUs share a machine, but PyTorch cannot let them write in each other's memory"
        + (f" ({reason})" if reason else "")
        + f"; messages are sent instead, which is slower. Set {ENVIRONMENT}=0 to do without",
        stacklevel=2,
    )
    return None

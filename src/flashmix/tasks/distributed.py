"""The little that training asks of torch.distributed; alone, all of it does nothing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from zero."""
    return dist.get_rank() if world() > 1 else 0


def launched_world() -> int:
    """Number of processes that torchrun started, this one among them; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return launched_world() > 1


@contextlib.contextmanager
def group(device: str) -> Iterator[None]:
    """Join the processes that torchrun started: gloo on CPUs, and NCCL where there are GPUs."""
    if not launched():
        yield
        return
    if device == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)  # what "cuda" means from here on
        # The CPU too, for small properties that no GPU should be waited for.
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=own)
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes, in place."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def wait() -> None:
    """Wait until all processes are here."""
    if world() > 1:
        dist.barrier()


def from_first(value: Any) -> Any:
    """The first process's ``value`` (JSON), in every process."""
    if world() == 1:
        return value
    data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=_device())
    size = torch.tensor([len(data)], device=_device())
    dist.broadcast(size, 0)
    if rank():
        data = torch.empty(int(size), dtype=torch.uint8, device=_device())
    dist.broadcast(data, 0)
    return json.loads(bytes(data.tolist()))


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"

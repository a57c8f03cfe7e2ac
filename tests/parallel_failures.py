"""What ranks do that fail, differ or die. See ``parallel_cases``."""

from __future__ import annotations

import itertools
import os
import signal
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from flashmix import create_mixer, parallel
from flashmix.bench.ranks.traffic import SentBytes
from flashmix.parallel.comm import ranks as comm_ranks
from helpers import fresh_mixer
from parallel_cases import MESHES


def die():
    """As the system's out-of-memory killer ends a process: no word, no clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


def call(text, *, odd_rank=None, timeout_s=None, **odd):
    """One forward and backward, in which ``odd_rank`` does something else than the others."""
    odd = odd if dist.get_rank() == odd_rank else {}
    mesh = MESHES[dist.get_world_size()]
    if timeout_s is not None:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), mesh.get_group())
    mixer = parallel.shard_sequence(fresh_mixer(text), mesh, sum_gradients=False)
    x = torch.zeros(odd.get("batch", 2), 6, odd.get("dim", 8), requires_grad=odd.get("grad", True))
    dtype = getattr(torch, odd.get("dtype", "float32"))
    mixer, x = mixer.to(dtype), x.detach().to(dtype).requires_grad_(x.requires_grad)
    if odd.get("dies_in") == "forward":
        die()
    if odd.get("dies_in") == "chunks":
        mixer.sharding.ranks.start_all_to_all_flat = _dies_at_its(
            3, mixer.sharding.ranks.start_all_to_all_flat
        )
    time.sleep(odd.get("sleeps_s", 0))
    y = mixer(x)
    if odd.get("dies_in") == "backward":
        die()
    if y.requires_grad:
        y.sum().backward()
    return list(y.shape)


def _dies_at_its(number, function):
    """``function``, in whose ``number``-th call this process is killed."""
    calls = itertools.count(1)

    def call(*arguments):
        if next(calls) == number:
            die()
        return function(*arguments)

    return call


def shard_with(what):
    """``shard_sequence`` with an argument that does not fit."""
    mesh = MESHES[dist.get_world_size()]
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))
    mixer = create_mixer("fnet", 8)
    if what == "two dimensions":
        parallel.shard_sequence(mixer, square)
    elif what == "no mesh":
        parallel.shard_sequence(mixer, dist.group.WORLD)
    elif what == "no mixer":
        parallel.shard_sequence(torch.nn.Linear(2, 2), mesh)
    elif what == "twice":
        parallel.shard_sequence(parallel.shard_sequence(mixer, mesh), mesh)
    elif what == "convolution":
        parallel.shard_sequence(torch.nn.Sequential(mixer, torch.nn.Conv1d(2, 2, 3)), mesh)
    elif what == "impl":
        parallel.shard_sequence(create_mixer("fnet(impl=reference)", 8), mesh)
    elif what == "impl on one rank":
        impl = "reference" if dist.get_rank() == 1 else "auto"
        parallel.shard_sequence(create_mixer("fnet", 8, impl=impl), mesh)
    elif what == "meta":
        with torch.device("meta"):
            mixer = create_mixer("attention", 8)
        parallel.shard_sequence(mixer, mesh)
    elif what == "models":
        parallel.shard_sequence(create_mixer("attention", 8 + 8 * (dist.get_rank() == 1)), mesh)
    elif what == "short":
        parallel.local_slice(3, mesh)
    elif what == "weights":
        parallel.shard_sequence(create_mixer("attention", 8), mesh)(
            torch.zeros(1, 4, 8), return_weights=True
        )


def metadata_through_all(size, dies=False):
    """The metadata that ranks of a mesh without a CPU backend gather, and the bytes sent."""
    if dist.get_rank() >= size:
        return None
    if dies and dist.get_rank() == size - 1:
        die()
    over = comm_ranks.Ranks(MESHES[size])
    by_cpu, comm_ranks._has_cpu_backend = (
        comm_ranks._has_cpu_backend,
        lambda group: group is dist.group.WORLD,
    )
    try:
        with SentBytes() as sent:
            rows = over.check_consistent(
                "here", {"rank": over.rank, "size": size}, may_differ=("rank",)
            )
        return rows, sent.exchanged
    finally:
        comm_ranks._has_cpu_backend = by_cpu

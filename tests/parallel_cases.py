"""What the ranks of a test do; each function runs on every rank of a pool with the same arguments.

A sequence of the test lies over the first ranks, as many as ``counts`` has entries.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from flashmix import parallel
from flashmix.ops.block_topk_attention import blocks
from flashmix.ops.block_topk_attention import torch as block_topk
from flashmix.ops.local_attention import torch as local
from flashmix.parallel import _ring, _spectral
from helpers import make_mixer, randn

MESHES: dict[int, DeviceMesh] = {}


def start() -> None:
    """Meshes over the first ranks, and chunks so small that few tokens need several."""
    for size in range(1, dist.get_world_size() + 1):
        MESHES[size] = DeviceMesh("cpu", list(range(size)))
    _ring.CHUNK["cpu"], _spectral.CHUNK = 32, 5
    blocks.BLOCK = block_topk.BLOCK = local.MIN_BLOCK = 4


def mine(counts: tuple[int, ...]) -> slice | None:
    """The tokens of this rank; None where it is not one of theirs."""
    rank = dist.get_rank()
    return slice(sum(counts[:rank]), sum(counts[: rank + 1])) if rank < len(counts) else None


def errors_of_mixer(text, counts, batch, heads, mask=None, dtype=torch.float64, dim=8):
    """How far output, input's gradient and parameters' gradients are from one device's."""
    own = mine(counts)
    if own is None:
        return {}

    def make():
        return make_mixer(text, dim, num_heads=heads, dtype=dtype)

    n = sum(counts)
    x, upstream = (
        randn(batch, n, dim, seed=1, dtype=dtype),
        randn(batch, n, dim, seed=2, dtype=dtype),
    )
    if mask is not None:
        mask = torch.tensor(mask)
        x[~mask] = float("nan")
    return _errors(
        make(), parallel.shard_sequence(make(), MESHES[len(counts)]), x, upstream, mask, own
    )


def _errors(whole, sharded, x, upstream, mask, own):
    x = x.requires_grad_()
    want = whole(x, mask)
    (want * upstream).sum().backward()
    slice_x = x.detach()[:, own].clone().requires_grad_()
    got = sharded(slice_x, None if mask is None else mask[:, own])
    (got * upstream[:, own]).sum().backward()
    pairs = {"y": (got, want[:, own], want), "x": (slice_x.grad, x.grad[:, own], x.grad)}
    theirs = dict(sharded.named_parameters())
    for name, parameter in whole.named_parameters():
        pairs[name] = (theirs[name].grad, parameter.grad, parameter.grad)
    return {name: _relative(*pair) for name, pair in pairs.items()}


def _relative(got, want, scale):
    """|got - want| over the norm of the whole; NaN where they do not fit."""
    if got is None or got.shape != want.shape or got.dtype != want.dtype:
        return float("nan")
    error = (got.detach() - want.detach()).double().norm().item()
    return error / max(scale.detach().double().norm().item(), 1e-30)

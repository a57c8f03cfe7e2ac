"""What the ranks of a test do; each function runs on every rank of a pool with the same arguments.

A sequence of the test lies over the first ranks, as many as ``counts`` has entries.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from flashmix import parallel
from flashmix.errors import ImplementationError
from flashmix.ops.block_topk_attention import blocks
from flashmix.ops.block_topk_attention import torch_impl as block_topk
from flashmix.ops.local_attention import torch_impl as local
from flashmix.parallel.attention import ring
from flashmix.parallel.comm import chunks
from flashmix.parallel.fnet import fft
from flashmix.parallel.spectral import channels, modes
from helpers import by_reference, make_mixer, randn

MESHES: dict[int, DeviceMesh] = {}


def start() -> None:
    """Meshes over the first ranks, chunks so small that few tokens need several, NaN in memory."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for size in range(1, dist.get_world_size() + 1):
        MESHES[size] = DeviceMesh("cpu", list(range(size)))
    ring.MAX_SCORES["cpu"], modes.CHUNK_TOKENS["cpu"], fft.WIDTH_CHUNK["cpu"] = 32, 5, 3
    modes.MAX_BATCHED_CHUNKS["cpu"] = 2
    chunks.MAX_CHUNKS["cpu"], chunks.MIN_CHUNK_BYTES["cpu"] = 3, 1
    channels.MIN_CHANNELS = fft.MIN_COLUMNS = 1
    blocks.BLOCK = block_topk.BLOCK = local.MIN_BLOCK = 4


def seeded(make, *arguments, **keywords):
    """A model in float64 with the same parameters wherever it is made."""
    torch.manual_seed(0)
    return make(*arguments, **keywords).double()


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
        mask = torch.tensor(mask, dtype=torch.bool).view(batch, n)
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
        want = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        pairs[name] = (theirs[name].grad, want, want)
    return {name: _relative(*pair) for name, pair in pairs.items()}


def second_derivatives_or_refusal(text, counts):
    """How far off they are where the gradient that comes in is constant, or the refusal."""
    own, n = mine(counts), sum(counts)
    if own is None:
        return None
    mixer = make_mixer(text, 8, num_heads=1)
    x, upstream, probe = (randn(1, n, 8, seed=seed) for seed in (1, 2, 3))

    def found(mixer, some):
        leaf = x[:, some].clone().requires_grad_()
        (first,) = torch.autograd.grad(mixer(leaf), leaf, upstream[:, some], create_graph=True)
        total = (first * probe[:, some]).sum() + 0 * leaf.sum()
        return torch.autograd.grad(total, leaf)[0]

    want = found(by_reference(mixer), slice(None))
    sharded = parallel.shard_sequence(make_mixer(text, 8, num_heads=1), MESHES[len(counts)])
    try:
        return _relative(found(sharded, own), want[:, own], want)
    except ImplementationError as error:
        return str(error)


def refusals_of_transforms(text, counts):
    """What a sharded mixer says in forward mode, and under ``torch.func``."""
    own = mine(counts)
    if own is None:
        return []
    sharded = parallel.shard_sequence(make_mixer(text, 8), MESHES[len(counts)])
    x = randn(1, sum(counts), 8)[:, own]
    said = []
    for run in (
        lambda: torch.func.jvp(sharded, (x,), (x,)),
        lambda: torch.func.grad(lambda x: sharded(x).sum())(x),
        lambda: torch.vmap(sharded)(x[None]),
    ):
        try:
            run()
            said.append("nothing")
        except ImplementationError as error:
            said.append(str(error))
    return said


def error_of_second_derivatives(text, counts):
    """How far the gradient of the input's gradient is from one device's."""
    own, n = mine(counts), sum(counts)
    if own is None:
        return {}
    x, upstream, probe = (randn(2, n, 8, seed=seed) for seed in (1, 2, 3))

    def found(mixer, some):
        leaf = x[:, some].clone().requires_grad_()
        weights = upstream[:, some].clone().requires_grad_()
        first = torch.autograd.grad(mixer(leaf).square(), leaf, weights, create_graph=True)
        return torch.autograd.grad(first, (leaf, weights), probe[:, some].contiguous())

    def make():
        return make_mixer(text, 8, num_heads=2)

    want = found(make(), slice(None))
    got = found(parallel.shard_sequence(make(), MESHES[len(counts)]), own)
    return {
        name: _relative(a, b[:, own], b)
        for name, a, b in zip(("x", "upstream"), got, want, strict=True)
    }


def _relative(got, want, scale):
    """|got - want| over the norm of the whole; NaN where they do not fit."""
    if got is None or got.shape != want.shape or got.dtype != want.dtype:
        return float("nan")
    error = (got.detach() - want.detach()).double().norm().item()
    return error / max(scale.detach().double().norm().item(), 1e-30)

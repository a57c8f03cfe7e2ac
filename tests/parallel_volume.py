"""Bytes that ranks send, and memory that they hold. See ``parallel_cases``."""

from __future__ import annotations

import torch
import torch.distributed as dist

from flashmix import create_mixer, parallel
from flashmix.bench.memory import peak_mb
from flashmix.bench.ranks.traffic import SentBytes
from flashmix.parallel.comm import chunks
from flashmix.parallel.fnet import fft
from flashmix.parallel.spectral import modes
from helpers import fresh_mixer, randn
from parallel_cases import MESHES


def bytes_of_gradients(text, ranks, n, dim):
    """Payload of a backward's all-reduces in float32, the gradients of parameters among it."""
    if dist.get_rank() >= ranks:
        return None
    mixer = parallel.shard_sequence(create_mixer(text, dim), MESHES[ranks])
    x = randn(1, n, dim, dtype=torch.float32).requires_grad_()
    y = mixer(x)
    with SentBytes() as backward:
        y.sum().backward()
    return backward.reduced


def bytes_of(text, ranks, n, batch, dim, heads, masked=False):
    """(exchanged, reduced) of a forward pass and of its backward, float32."""
    if dist.get_rank() >= ranks:
        return None
    mixer = fresh_mixer(text, dim, num_heads=heads)
    mixer = parallel.shard_sequence(mixer, MESHES[ranks], sum_gradients=False)
    x = randn(batch, n, dim, dtype=torch.float32).requires_grad_()
    mask = torch.ones(batch, n, dtype=torch.bool) if masked else None
    with SentBytes() as forward:
        y = mixer(x, mask)
    with SentBytes() as backward:
        y.sum().backward()
    return (forward.exchanged, forward.reduced), (backward.exchanged, backward.reduced)


def share_of_memory(text, n, dim):
    """Peak of a forward and backward on two ranks, over that of one device; [] elsewhere."""
    if dist.get_rank() > 1:
        return None
    settings = (chunks.MAX_CHUNKS["cpu"], chunks.MIN_CHUNK_BYTES["cpu"], fft.MIN_COLUMNS)
    widths = (fft.WIDTH_CHUNK["cpu"], modes.CHUNK_TOKENS["cpu"])
    # As a sequence of 131,072 tokens is cut.
    chunks.MAX_CHUNKS["cpu"], chunks.MIN_CHUNK_BYTES["cpu"], fft.MIN_COLUMNS = 64, 1 << 16, 3
    fft.WIDTH_CHUNK["cpu"], modes.CHUNK_TOKENS["cpu"] = 32, 32
    peaks = []
    try:
        for mixer in (
            create_mixer(text, dim),
            parallel.shard_sequence(create_mixer(text, dim), MESHES[2]),
        ):
            own = mixer.sharding is not None
            x = torch.randn(1, n // 2 if own else n, dim, requires_grad=True)
            upstream = torch.randn_like(x)

            def step(mixer=mixer, x=x, upstream=upstream):
                mixer(x).backward(upstream)
                mixer.zero_grad()
                x.grad = None

            step()
            peaks.append(peak_mb(step, "cpu"))
    finally:
        chunks.MAX_CHUNKS["cpu"], chunks.MIN_CHUNK_BYTES["cpu"], fft.MIN_COLUMNS = settings
        fft.WIDTH_CHUNK["cpu"], modes.CHUNK_TOKENS["cpu"] = widths
    return peaks[1] / peaks[0]

"""What ranks do as if a CUDA graph were captured. See ``parallel_cases``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from flashmix import create_mixer, parallel
from flashmix.models import TextClassifier
from flashmix.parallel import strategy
from flashmix.parallel.comm import ranks as comm_ranks
from helpers import make_mixer, randn
from parallel_cases import MESHES, mine, seeded


@contextmanager
def capture() -> Iterator[None]:
    """As if a CUDA graph were captured; to tell the other ranks something is an error."""

    def nobody(*_):
        raise AssertionError("ranks communicated while a graph was captured")

    kept, gather = strategy.capturing, comm_ranks.Ranks._all_gather
    strategy.capturing, comm_ranks.Ranks._all_gather = (lambda: True), nobody
    try:
        yield
    finally:
        strategy.capturing, comm_ranks.Ranks._all_gather = kept, gather


def captured(text, layouts, of_text=False):
    """Whether output and gradients captured after calls of ``layouts`` are those of the last one.

    ``text`` is a mixer, or the pattern of a classifier ``of_text``.
    """
    mesh = MESHES[len(layouts[0])]
    if mine(layouts[0]) is None:
        return True
    if of_text:
        model = seeded(TextClassifier, 11, 40, 3, dim=8, depth=2, mixers=text, num_heads=2)
    else:
        model = make_mixer(text, 8, num_heads=2, dtype=torch.float64)
    parallel.shard_sequence(model, mesh)

    def results(counts):
        own, n = mine(counts), sum(counts)
        if of_text:
            y = model((torch.arange(2 * n).view(2, n) % 11)[:, own])
            return [y, *torch.autograd.grad(y.sum(), list(model.parameters()))]
        x = randn(2, n, 8, seed=1)[:, own].requires_grad_()
        y = model(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]

    for counts in layouts:
        want = results(counts)
    with capture():
        got = results(layouts[-1])
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def captured_wrongly(what):
    """A call that cannot be captured."""
    mixer = parallel.shard_sequence(create_mixer("spectral(modes=2)", 8), MESHES[4])
    x, mask = torch.zeros(2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    if what != "never called":
        mixer(x)
    if what != "a mask" and not (what == "a mask elsewhere" and dist.get_rank() == 2):
        mask = None
    if what == "a mask elsewhere":
        mixer(x, mask)
    if what == "a gradient":
        x = torch.zeros(2, 6, 8, requires_grad=True)
    with capture():
        if what == "a width":
            mixer(torch.zeros(2, 6, 9))
        mixer(x[:, :5] if what == "another shape" else x, mask)

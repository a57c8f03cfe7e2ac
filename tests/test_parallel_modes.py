"""The modes of a slice as products of half types, which a CPU has no product for."""

import pytest
import torch

from flashmix.ops import spectral
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.spectral import modes
from helpers import randn, relative_error

COUNTS = (22, 9, 17)
BUDGETS = {torch.bfloat16: 8e-3, torch.float16: 1e-3}


class OneOf:
    """A rank that is given the sum of the others."""

    def __init__(self, rank, others):
        self.rank, self.size, self.others = rank, len(COUNTS), others

    def all_reduce(self, x):
        return x + self.others


@pytest.fixture
def half_products(monkeypatch):
    """As on a GPU: operands of half types, sums of float32."""
    bmm = torch.bmm

    def summed(a, b, out_dtype=None):
        return bmm(a, b) if out_dtype is None else bmm(a.to(out_dtype), b.to(out_dtype))

    monkeypatch.setattr(modes, "_operand", lambda tokens, modes, device: tokens)
    monkeypatch.setattr(torch, "bmm", summed)
    monkeypatch.setitem(modes.CHUNK_TOKENS, "cpu", 5)
    monkeypatch.setitem(modes.MAX_BATCHED_CHUNKS, "cpu", 2)


@pytest.mark.parametrize("dtype", BUDGETS, ids=str)
@pytest.mark.parametrize("unitary", [False, True])
@pytest.mark.usefixtures("half_products")
def test_slices_of_half_types_are_those_of_the_whole(dtype, unitary):
    n = sum(COUNTS)
    x = randn(2, n, 6, dtype=torch.float32).to(dtype)
    weight, bias = (
        randn(4, 6, 2, seed=1, dtype=torch.float32),
        randn(6, seed=2, dtype=torch.float32),
    )
    bias = None if unitary else bias
    wide = None if bias is None else bias.double()
    want = spectral(x.double(), weight.double(), wide, unitary=unitary, impl="reference")
    layouts = [Layout(OneOf(rank, 0), COUNTS, None) for rank in range(len(COUNTS))]
    slices = x.split(COUNTS, 1)
    parts = [
        modes.Analyse.apply(one, list(modes.group_by_length(layout, 4)), torch.float32)
        for one, layout in zip(slices, layouts, strict=True)
    ]
    got = []
    for rank, one in enumerate(slices):
        others = sum(parts) - parts[rank]
        layout = Layout(OneOf(rank, others), COUNTS, None)
        got.append(modes.filter_by_modes(one, weight, bias, unitary, layout, False))
    assert all(one.dtype == dtype for one in got)
    assert relative_error(torch.cat(got, 1), want) <= BUDGETS[dtype]

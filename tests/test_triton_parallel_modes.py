"""Few modes across ranks in Triton, interpreted: the ranks are threads that take turns."""

import threading

import pytest
import torch

pytest.importorskip("triton")

from flashmix.ops import spectral
from flashmix.ops._triton.availability import DTYPES, INTERPRETED
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.spectral import modes_function, modes_triton
from flashmix.parallel.spectral.modes_triton import split_tokens
from helpers import relative_error

pytestmark = pytest.mark.skipif(
    not INTERPRETED or torch.cuda.is_available(), reason="needs TRITON_INTERPRET=1 and no GPU"
)
WAIT_S = 60


class Turns:
    """Ranks of which one runs at a time, until all wait for a sum."""

    def __init__(self, size):
        self.lock, self.barrier = threading.Lock(), threading.Barrier(size, timeout=WAIT_S)
        self.parts = [None] * size
        self.sums = 0

    def all_arrive(self):
        self.lock.release()
        self.barrier.wait()
        self.lock.acquire()

    def run(self, work):
        """``work(ranks)`` of each rank's."""
        results = [None] * len(self.parts)

        def one(rank):
            with self.lock:
                try:
                    results[rank] = work(OneOf(self, rank))
                except BaseException as error:
                    results[rank] = error
                    self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [one for one in results if isinstance(one, BaseException)]
        errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
        if errors:
            raise errors[0]
        return results


class OneOf:
    """What a rank sees of the others."""

    def __init__(self, turns, rank):
        self.turns, self.rank, self.size = turns, rank, len(turns.parts)

    def all_reduce_(self, x):
        turns = self.turns
        turns.parts[self.rank] = x.clone()
        turns.sums += self.rank == 0
        turns.all_arrive()
        x.copy_(sum(turns.parts))
        turns.all_arrive()
        return x

    def all_reduce(self, x):
        return self.all_reduce_(x.clone(memory_format=torch.contiguous_format))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several products with a rest, and products of half types whose sums are float32."""
    bmm = torch.bmm

    def summed(a, b, out_dtype=None, *, out=None):
        wide = out_dtype or a.dtype
        return bmm(a.to(wide), b.to(wide), out=out)

    monkeypatch.setattr(torch, "bmm", summed)
    monkeypatch.setattr(modes_triton, "ANALYSIS", (5, 3))
    monkeypatch.setattr(modes_triton, "SYNTHESIS", (7, 2))


def drawn(*shape, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


# Batch, tokens of each rank, width, modes, unitary, bias.
CASES = [
    (1, (40, 40), 24, 9, False, True),
    (1, (22, 9, 17), 6, 4, False, False),
    (2, (15, 15), 16, 15, False, True),  # whole chunks; all modes of an even length but Nyquist
    (2, (15, 15), 16, 16, False, True),  # and with it
    (2, (8, 3, 4), 6, 8, True, False),  # all modes of an odd length
    (2, (15, 15), 16, 16, True, False),
    (3, (37, 30), 300, 5, False, True),  # more columns than a program takes
    (3, (6, 1), 5, 9, False, True),  # more modes than there are
]
BUDGETS = {torch.float32: 3e-6, torch.float16: 1.5e-3}


def operands(case, dtype, weight_dtype=torch.float32):
    batch, counts, dim, modes, _, with_bias = case
    x = drawn(batch, sum(counts), dim, seed=0, dtype=dtype)
    upstream = drawn(batch, sum(counts), dim, seed=1, dtype=dtype)
    weight = drawn(modes, dim, 2, seed=2, dtype=weight_dtype)
    bias = drawn(dim, seed=3, dtype=weight_dtype) if with_bias else None
    return x, upstream, weight, bias


def leaves(*tensors):
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


def outcome(y, upstream, x, weight, bias):
    wanted = [x, weight] + ([] if bias is None else [bias])
    return [y, *torch.autograd.grad(y, wanted, upstream)]


def over_ranks(case, operands, whole):
    """(y, gradients of x, W and b) of each rank, and how often they summed."""
    counts, unitary = case[1], case[4]
    x, upstream, weight, bias = operands
    turns = Turns(len(counts))

    def work(ranks):
        own = Layout(ranks, counts, None).own
        mine = leaves(x[:, own], weight, bias)
        layout = Layout(ranks, counts, None)
        y = modes_function.filter_by_modes(*mine, unitary, layout, whole)
        return outcome(y, upstream[:, own], *mine)

    return turns.run(work), turns.sums


def exact(case, operands):
    x, upstream, weight, bias = (None if t is None else t.double() for t in operands)
    mine = leaves(x, weight, bias)
    y = spectral(*mine, unitary=case[4], impl="reference")
    return outcome(y, upstream, *mine)


def assert_whole(got, want, whole, budget):
    """Slices of y and of x's gradient lie end to end; parameters' are whole, or parts of a sum."""
    for place, right in enumerate(want):
        parts = [one[place] for one in got]
        if place < 2:
            assert relative_error(torch.cat(parts, 1), right) <= budget
        elif whole:
            assert all(relative_error(part, right) <= budget for part in parts)
        else:
            assert relative_error(sum(parts), right) <= budget


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_ranks_filter_what_one_device_does(case, dtype, whole):
    given = operands(case, dtype)
    got, sums = over_ranks(case, given, whole)
    assert all(one[0].dtype == one[1].dtype == dtype for one in got)
    assert sums == 2
    assert_whole(got, exact(case, given), whole, BUDGETS[dtype])


def test_parameters_of_half_types_get_gradients_of_theirs():
    given = operands(CASES[0], torch.float16, torch.float16)
    got, _ = over_ranks(CASES[0], given, True)
    assert all(grad.dtype == torch.float16 for grad in got[0])
    assert_whole(got, exact(CASES[0], given), True, BUDGETS[torch.float16])


@pytest.mark.parametrize("frozen", ["x", "weight", "all"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_needs_no_gradient_gets_none(frozen, whole):
    case = CASES[0]
    x, upstream, weight, bias = operands(case, torch.float32)
    want = exact(case, (x, upstream, weight, bias))
    turns = Turns(2)

    def work(ranks):
        layout = Layout(ranks, case[1], None)
        mine = leaves(x[:, layout.own], weight, bias)
        wanted = {"x": mine[1:], "weight": mine[:1], "all": []}[frozen]
        for leaf in mine:
            leaf.requires_grad_(any(leaf is one for one in wanted))
        y = modes_function.filter_by_modes(*mine, False, layout, whole)
        assert y.requires_grad == bool(wanted)
        return torch.autograd.grad(y, wanted, upstream[:, layout.own]) if wanted else ()

    got = turns.run(work)
    assert turns.sums == {"x": 1 + whole, "weight": 2, "all": 1}[frozen]
    if frozen == "x":
        for place in range(2):
            parts = [one[place] for one in got]
            total = parts[0] if whole else sum(parts)
            assert relative_error(total, want[2 + place]) <= BUDGETS[torch.float32]
    if frozen == "weight":
        assert relative_error(torch.cat([one[0] for one in got], 1), want[1]) <= 3e-6


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[5]], ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_second_derivatives_are_those_of_one_device(case, whole):
    counts, unitary = case[1], case[4]
    given = x, upstream, weight, bias = operands(case, torch.float32)
    towards_x, towards_weight = (
        drawn(*one.shape, seed=seed, dtype=torch.float32) for seed, one in ((4, x), (5, weight))
    )

    def second(y, upstream, x, weight, along_x):
        grads = torch.autograd.grad(y, (x, weight), upstream, create_graph=True)
        loss = (grads[0] * along_x).sum() + (grads[1] * towards_weight.to(x.dtype)).sum()
        return torch.autograd.grad(loss, (upstream, x, weight))

    wide = leaves(*(None if t is None else t.double() for t in given))
    y = spectral(wide[0], *wide[2:], unitary=unitary, impl="reference")
    want = second(y, wide[1], wide[0], wide[2], towards_x.double())

    def work(ranks):
        layout = Layout(ranks, counts, None)
        mine = leaves(x[:, layout.own], upstream[:, layout.own], weight, bias)
        y = modes_function.filter_by_modes(mine[0], *mine[2:], unitary, layout, whole)
        return second(y, mine[1], mine[0], mine[2], towards_x[:, layout.own])

    got = Turns(len(counts)).run(work)
    assert_whole(got, want, whole, 2e-5)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 5, 20, 33])
@pytest.mark.parametrize("most", [1, 3, 16])
def test_every_token_is_in_one_product(batch, count, most):
    seen = torch.zeros(batch, count, dtype=torch.int64)
    for row, rows, first, chunks, tokens in split_tokens(batch, count, 5, most):
        assert rows * chunks <= most
        seen[row : row + rows, first : first + chunks * tokens] += 1
    assert bool((seen == 1).all())

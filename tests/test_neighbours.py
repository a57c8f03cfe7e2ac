"""The law of neighbours: a sequence's values and bits are the same alone and in any batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmix.ops._cpu import library
from helpers import each_impl, randn, relative_error, skip_unless_runs

native = pytest.mark.skipif(library.missing() is not None, reason=f"native {library.missing()}")

SPOILERS = (float("nan"), float("inf"), 1e30)
"""What stands in other sequences: at one real token each, and all over their padding."""

BITS_ARE_PYTORCHS = {
    "torch": "MKL's FFTs and products, and the fused attention, take batches by other kernels",
    "dense": "a product of matrices takes one sequence by another kernel than several",
    "reference": "written as PyTorch's products and FFTs of the whole batch",
}
"""The implementations whose bits PyTorch's own kernels decide, and why: their law is of values."""

# Two float32 computations of one formula that order their sums otherwise.
VALUES = 2e-6


def outputs(case, tokens, parameters, upstream, mask, impl):
    """The output and the gradients of the tokens, tokens on axis 1."""
    leaves = [x.detach().requires_grad_() for x in tokens]
    y = case.run(*leaves, *parameters, mask=mask, impl=impl)
    got = (y, *torch.autograd.grad(y, leaves, upstream))
    return [x.detach().transpose(1, case.token_axis) for x in got]


def spoil(x, row, value, real, axis):
    """``value`` at one real token of sequence ``row`` of ``x``, and at its padding."""
    sequence = x[row].transpose(0, axis - 1)
    sequence[~real] = value
    sequence[int(real.nonzero()[0])] = value if value != 1e30 else sequence[real][0] * value


def check_neighbours(
    case, impl, n, dim, spoilers, *, mask=None, bits, heads=2, dtype=torch.float32
):
    """Sequences of ``None`` equal themselves alone beside those spoilt by the other values."""
    batch = len(spoilers)
    tokens, parameters = case.inputs(batch, n, dim, heads=heads, dtype=dtype)
    upstream = randn(*tokens[0].shape, seed=9, dtype=dtype)
    real = torch.ones(batch, n, dtype=torch.bool) if mask is None else mask
    clean = [b for b, value in enumerate(spoilers) if value is None]
    alone = {
        b: outputs(
            case,
            [x[b : b + 1] for x in tokens],
            parameters,
            upstream[b : b + 1],
            None if mask is None else mask[b : b + 1],
            impl,
        )
        for b in clean
    }
    for b, value in enumerate(spoilers):
        for x in (*tokens, upstream):
            if value is not None and real[b].any():
                spoil(x, b, value, real[b], case.token_axis)
    together = outputs(case, tokens, parameters, upstream, mask, impl)
    for b in clean:
        for place, (got, want) in enumerate(zip(together, alone[b], strict=True)):
            at = f"output {place} of sequence {b} of {batch}"
            if bits:
                assert torch.equal(got[b], want[0]), at
            else:
                assert relative_error(got[b], want[0]) <= VALUES, at


# Lengths that are even, odd, prime and none of the small primes' products; widths with and without
# left-overs of a vector. Heads that divide the width.
SIZES = [(16, 64, 2), (15, 7, 1), (37, 33, 1), (75, 96, 3), (34, 34, 2)]
BATCH = [None, float("nan"), None, 1e30, float("inf"), None, float("nan"), 1e30, None]


@each_impl()
@pytest.mark.parametrize("masked", [False, True])
def test_a_sequence_never_touches_its_neighbours(case, impl, masked):
    skip_unless_runs(case.operator, impl, torch.float32, "cpu")
    for n, dim, heads in SIZES:
        mask = randn(len(BATCH), n, seed=3) > -0.5 if masked else None
        bits = impl not in BITS_ARE_PYTORCHS
        check_neighbours(case, impl, n, dim, BATCH, mask=mask, bits=bits, heads=heads)


@native
@each_impl(without=tuple(BITS_ARE_PYTORCHS))
@given(data=st.data())
def test_no_batch_changes_the_bits_of_a_native_sequence(case, impl, data):
    n, dim = data.draw(st.integers(1, 80)), 2 * data.draw(st.integers(1, 40))
    spoilers = data.draw(st.lists(st.sampled_from([None, None, *SPOILERS]), min_size=1, max_size=9))
    masked = data.draw(st.booleans())
    mask = randn(len(spoilers), n, seed=n) > -0.5 if masked else None
    check_neighbours(case, impl, n, dim, spoilers, mask=mask, bits=True)


# A product of small primes, and lengths and widths with a large one.
@native
@each_impl(without=tuple(BITS_ARE_PYTORCHS))
@pytest.mark.parametrize(
    ("threads", "n", "dim", "dtype"),
    [(3, 150, 64, torch.float32), (2, 197, 24, torch.float32), (2, 46, 62, torch.float64)],
)
def test_no_batch_changes_the_bits_of_a_sequence_among_threads(case, impl, threads, n, dim, dtype):
    torch.set_num_threads(threads)
    try:
        check_neighbours(case, impl, n, dim, BATCH, bits=True, dtype=dtype)
    finally:
        torch.set_num_threads(1)

"""Mixtures of lengths: native kernels take them in one call, and no sequence feels another's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmix.ops._cpu import library
from helpers import assert_close, randn
from test_cpu import TRANSFORMS, each_case
from test_neighbours import outputs

pytestmark = pytest.mark.skipif(library.missing() is not None, reason=f"native {library.missing()}")
each_transform = pytest.mark.parametrize("case", TRANSFORMS, ids=[case.name for case in TRANSFORMS])

# Alone, sequences of so few tokens are left to PyTorch's fused attention: each sees all keys.
SHORT_ARE_DENSE, FEW = ("local_attention", "topk_attention"), 3

PLACES = ("right", "left", "holes")


def masked(n, lengths, places):
    """A mask [B, N] of these lengths, each with its padding at a place."""
    mask = torch.zeros(len(lengths), n, dtype=torch.bool)
    for row, length, place in zip(mask, lengths, places, strict=True):
        real = {
            "right": torch.arange(length),
            "left": torch.arange(n - length, n),
            "holes": randn(n, seed=length).argsort()[:length],
        }[place]
        row[real] = True
    return mask


@st.composite
def mixtures(draw):
    """Lengths from 0 to N, those of every kind of plan among them, and their masks."""
    n = draw(st.sampled_from([1, 2, 13, 64, 75, 97, 150]))
    some = [x for x in (0, 1, 2, 3, 16, 17, 23, 31, 37, 46, 64, 67, 97, 127, 131) if x <= n]
    lengths = draw(st.lists(st.sampled_from([*some, n]), min_size=1, max_size=7))
    return masked(n, lengths, [draw(st.sampled_from(PLACES)) for _ in lengths])


def inputs(case, mask, dim, dtype=torch.float32):
    tokens, parameters = case.inputs(*mask.shape, dim, dtype=dtype)
    return tokens, parameters, randn(*tokens[0].shape, seed=9, dtype=dtype)


def spoilt(x, mask, axis):
    """``x`` with NaN at the padding."""
    by_token = x.transpose(1, axis)
    padding = ~mask.reshape(*mask.shape, *[1] * (x.dim() - 2))
    return by_token.masked_fill(padding, float("nan")).transpose(1, axis)


@each_case
@given(mask=mixtures(), dim=st.sampled_from([2, 6, 34, 72]))
def test_no_mixture_of_lengths_changes_the_bits_of_a_sequence(case, mask, dim):
    if case.operator in SHORT_ARE_DENSE and mask.shape[1] <= FEW:
        return
    tokens, parameters, upstream = inputs(case, mask, dim)
    given = [spoilt(x, mask, case.token_axis) for x in (*tokens, upstream)]
    together = outputs(case, given[:-1], parameters, given[-1], mask, "cpu")
    for b, real in enumerate(mask):
        for got in together:
            assert not got[b, ~real].any()
        if real.any():
            at = [x[b : b + 1].transpose(1, case.token_axis)[:, real] for x in (*tokens, upstream)]
            at = [x.transpose(1, case.token_axis).contiguous() for x in at]
            alone = outputs(case, at[:-1], parameters, at[-1], None, "cpu")
            for got, want in zip(together, alone, strict=True):
                if case.operator in SHORT_ARE_DENSE and real.sum() <= FEW:
                    assert_close(got[b, real], want[0], 2e-6)
                else:
                    assert torch.equal(got[b, real], want[0])


def everything(case, mask, impl, dtype, dim=48):
    tokens, parameters, upstream = inputs(case, mask, dim, dtype)
    leaves = [x.requires_grad_() for x in (*tokens, *parameters)]
    y = case.run(*leaves, mask=mask, impl=impl)
    return [y, *torch.autograd.grad(y, leaves, upstream)]


LONG_TAIL = [300, 1, 2, 7, 257, 0, 10, 10, 23, 10]


@each_transform
def test_a_mixture_rounds_as_float32_does_and_threads_change_no_bit(case):
    mask = masked(300, LONG_TAIL, ["right", "left", "holes", *["right"] * 7])
    got = everything(case, mask, "cpu", torch.float32)
    want = everything(case, mask, "reference", torch.float64)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1e-6)
    torch.set_num_threads(3)
    try:
        again = everything(case, mask, "cpu", torch.float32)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True))


@each_case
def test_a_masked_call_is_one_call_of_a_kernel_each_way(case, monkeypatch):
    calls = []
    run = library.Kernel.__call__

    def counted(kernel, *arguments):
        calls.append(kernel)
        run(kernel, *arguments)

    monkeypatch.setattr(library.Kernel, "__call__", counted)
    everything(case, masked(30, [30, 29, 28, 5, 0], ["right"] * 5), "cpu", torch.float32)
    assert len(calls) == 2

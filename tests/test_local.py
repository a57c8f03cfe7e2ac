"""Sliding-window attention: masked attention in less work."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from flashmix import ops
from helpers import OPS, assert_close, each_impl, make_mixer, randn, skip_unless_runs

pytestmark = pytest.mark.usefixtures("small_blocks")

each_local_impl = each_impl([case for case in OPS if case.name == "local"])
each_direction = pytest.mark.parametrize("causal", [False, True])


def band(n, window, causal, device):
    """Which key each query sees, bool [N, N]."""
    i = torch.arange(n, device=device)
    offset = i[:, None] - i
    if isinstance(window, tuple):
        near = (offset <= window[0]) & (offset >= -window[1])
    else:
        near = offset < window if causal else offset.abs() <= window // 2
    return near & ((offset >= 0) | (not causal))


@each_local_impl
@each_direction
@given(
    n=st.integers(1, 40),
    window=st.integers(1, 50) | st.tuples(st.integers(0, 50), st.integers(0, 50)),
)
def test_equals_masked_attention(case, impl, device, causal, n, window):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    qkv = [x.requires_grad_() for x in randn(3, 2, 2, n, 3, device=device).unbind(0)]
    upstream = randn(2, 2, n, 3, seed=1, device=device)
    y = ops.local_attention(*qkv, window=window, causal=causal, impl=impl)
    allowed = band(n, window, causal, device)
    want = F.scaled_dot_product_attention(*qkv, attn_mask=allowed)
    assert_close(y, want)
    got, expected = (torch.stack(torch.autograd.grad(out, qkv, upstream)) for out in (y, want))
    assert_close(got, expected)


@each_local_impl
@each_direction
@pytest.mark.parametrize("beyond", [0, 1, 1000])
def test_equals_attention_when_the_window_covers_everything(case, impl, device, causal, beyond):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    n = 13
    qkv = randn(3, 2, 2, n, 3, device=device)
    y = ops.local_attention(*qkv, window=2 * (n - 1) + beyond, causal=causal, impl=impl)
    assert_close(y, ops.attention(*qkv, causal=causal, impl="reference"))


@each_local_impl
@pytest.mark.parametrize("n", [1, 5, 130])
def test_window_of_one_is_the_value_itself(case, impl, device, n):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    q, k, v = randn(3, 2, 2, n, 3, device=device)
    assert_close(ops.local_attention(q, k, v, window=1, impl=impl), v)


@each_local_impl
def test_causal_outputs_know_no_later_token(case, impl, device):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    qkv = randn(3, 2, 2, 30, 3, device=device)
    full = ops.local_attention(*qkv, window=9, causal=True, impl=impl)
    for n in (1, 7, 29):
        later = qkv.clone()
        later[:, :, :, n:] = 100
        y = ops.local_attention(*later, window=9, causal=True, impl=impl)
        assert torch.equal(y[:, :, :n], full[:, :, :n])


def test_distances_count_real_tokens(device):
    """Two neighbours stay neighbours with padding between them."""
    mask = torch.tensor([[True, False, False, False, True, True]], device=device)
    mixer = make_mixer("local(window=3)", device=device)
    _, weights = mixer(randn(1, 6, 8, device=device), mask, return_weights=True)
    assert (weights[0, :, 0, 4] > 0).all()
    assert not weights[0, :, 0, 5].any()

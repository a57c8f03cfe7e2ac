"""Top-k attention: exactly k keys, ties to the lower index, no N x N tensor; block selection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmix import ops
from flashmix.ops.block_topk_attention.reference import block_topk_attention_and_weights
from flashmix.ops.topk_attention import torch_impl as chunked
from helpers import OPS, assert_close, each_impl, make_mixer, randn, skip_unless_runs

each_topk_impl = each_impl([case for case in OPS if case.name == "topk"])
each_block_impl = each_impl([case for case in OPS if case.name == "block"])
each_direction = pytest.mark.parametrize("causal", [False, True])


def kept_keys(q, k, topk, causal=False, impl="auto", mask=None):
    """Which keys each query keeps, bool [B, H, N, N]: v = 1 at one key at a time shows its weight.

    The weights are the output for v = identity, so the width of a head must be N.
    """
    n = q.shape[2]
    v = torch.eye(n, dtype=q.dtype, device=q.device).expand(*q.shape[:2], n, n).contiguous()
    q, k = (torch.nn.functional.pad(x, (0, n - x.shape[3])) for x in (q, k))
    weights = ops.topk_attention(q, k, v, topk=topk, causal=causal, impl=impl, mask=mask)
    return weights > 0


def lowest_of_the_highest(scores, allowed, topk):
    """The definition with Python's own stable sort, bool [N, N]."""
    kept = torch.zeros_like(allowed)
    for i in range(len(scores)):
        keys = [j for j in range(len(scores)) if allowed[i, j]]
        keys.sort(key=lambda j: (-scores[i, j].item(), j))
        kept[i, keys[:topk]] = True
    return kept


@each_topk_impl
@each_direction
@given(n=st.integers(1, 14), topk=st.integers(1, 16), seed=st.integers(0, 50))
def test_keeps_exactly_k_keys_and_gives_ties_to_the_lower_index(
    case, impl, device, small_blocks, causal, n, topk, seed
):
    # Integers from -1 to 1: scores are exact in float32, and many tie.
    q, k = randn(2, 2, 2, n, 2, seed=seed, device=device, dtype=torch.float32).round().clamp(-1, 1)
    allowed = torch.ones(n, n, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    kept = kept_keys(q, k, topk, causal, impl).cpu()
    assert torch.equal(kept.sum(-1), allowed.sum(-1).clamp(max=topk).expand(2, 2, n))
    for b in range(2):
        for h in range(2):
            want = lowest_of_the_highest(q[b, h] @ k[b, h].T, allowed, topk)
            assert torch.equal(kept[b, h], want)


@each_topk_impl
@given(mask=st.lists(st.booleans(), min_size=9, max_size=9), topk=st.integers(1, 8))
def test_chooses_among_real_keys_and_takes_all_where_there_are_fewer(
    case, impl, device, small_blocks, mask, topk
):
    mask = torch.tensor([mask], device=device)
    q, k = randn(2, 1, 2, 9, 2, device=device, dtype=torch.float32)
    kept = kept_keys(q, k, topk, impl=impl, mask=mask)[0]
    assert not kept[:, :, ~mask[0]].any()
    assert (kept[:, mask[0]].sum(-1) == min(topk, int(mask.sum()))).all()


@each_topk_impl
@each_direction
@pytest.mark.parametrize("n", [1, 2, 13])
@pytest.mark.parametrize("beyond", [0, 1, 1000])
def test_equals_attention_when_k_covers_all_keys(case, impl, device, causal, n, beyond):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    qkv = [x.requires_grad_() for x in randn(3, 2, 2, n, 3, device=device).unbind(0)]
    upstream = randn(2, 2, n, 3, seed=1, device=device)
    y = ops.topk_attention(*qkv, topk=n + beyond, causal=causal, impl=impl)
    want = ops.attention(*qkv, causal=causal, impl="reference")
    assert_close(y, want)
    got, expected = (torch.stack(torch.autograd.grad(out, qkv, upstream)) for out in (y, want))
    assert_close(got, expected)


@each_impl(
    [case for case in OPS if "topk" in case.name or "block" in case.name], without=("reference",)
)
@given(n=st.integers(1, 30))
def test_equals_the_reference_in_values_and_gradients(case, impl, device, small_blocks, n):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    qkv, _ = case.inputs(2, n, device=device)
    qkv = [x.requires_grad_() for x in qkv]
    upstream = randn(*qkv[0].shape, seed=9, device=device)
    y, want = (case.run(*qkv, impl=name) for name in (impl, "reference"))
    assert_close(y, want)
    got, expected = (torch.stack(torch.autograd.grad(out, qkv, upstream)) for out in (y, want))
    assert_close(got, expected)


def largest_allocation(impl, n, device):
    """The most bytes that any one operation takes, inside custom ops too, forward and backward."""
    qkv = [x.requires_grad_() for x in randn(3, 1, 1, n, 4, device=device).float().unbind(0)]
    with torch.profiler.profile(profile_memory=True) as profiler:
        ops.topk_attention(*qkv, topk=4, impl=impl).sum().backward()
    return max(
        max(event.self_cpu_memory_usage, event.self_device_memory_usage)
        for event in profiler.events()
    )


def test_holds_no_n_by_n_tensor(device, monkeypatch):
    n = 512
    square = n * n * torch.float32.itemsize
    monkeypatch.setitem(chunked.CHUNK, device, n * n // 16)
    assert largest_allocation("reference", n, device) >= square, "the measure itself must see one"
    assert largest_allocation("torch", n, device) <= square // 8


@each_block_impl
@each_direction
@pytest.mark.parametrize("n", [1, 5, 150])
def test_block_selection_equals_attention_when_k_covers_all_keys(case, impl, device, causal, n):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    qkv = randn(3, 2, 2, n, 3, device=device)
    y = ops.topk_attention(*qkv, topk=n, selection="block", causal=causal, impl=impl)
    assert_close(y, ops.attention(*qkv, causal=causal, impl="reference"))


@each_impl([case for case in OPS if case.name in ("topk", "block")])
@given(n=st.integers(1, 25), cut=st.integers(0, 24))
def test_causal_outputs_know_no_later_token(case, impl, device, small_blocks, n, cut):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    qkv = randn(3, 2, 2, n, 3, device=device)
    later = qkv.clone()
    later[:, :, :, cut:] = randn(*later[:, :, :, cut:].shape, seed=5, device=device) * 10
    y, other = (case.run(*x, causal=True, impl=impl) for x in (qkv, later))
    assert_close(other[:, :, :cut], y[:, :, :cut])
    assert_close(
        case.run(*qkv[:, :, :, :cut], causal=True, impl=impl), y[:, :, :cut]
    ) if cut else None


def chosen_blocks(q, k, topk, causal, size=4):
    """The definition of block selection for one head, bool [N, N]."""
    n = len(q)
    blocks = range(-(-n // size))
    seen = torch.zeros(n, n, dtype=torch.bool)
    for i in blocks:
        mine = q[i * size : (i + 1) * size]
        query = mine[0] if causal else mine.mean(0)
        score = {j: (query @ k[j * size : (j + 1) * size].mean(0)).item() for j in blocks}
        choices = [j for j in blocks if j < i] if causal else list(blocks)
        choices.sort(key=lambda j: (-score[j], j))
        needed = -(-topk // size)
        for j in [i, *choices][:needed] if causal else choices[:needed]:
            seen[i * size : (i + 1) * size, j * size : (j + 1) * size] = True
    return seen.tril() if causal else seen


@each_direction
@given(n=st.integers(1, 25), topk=st.integers(1, 20))
def test_block_selection_keeps_the_blocks_with_the_highest_pooled_scores(
    device, small_blocks, causal, n, topk
):
    q, k, v = randn(3, 1, 1, n, 3, device=device)
    weights = block_topk_attention_and_weights(q, k, v, None, topk, causal)[1]
    assert torch.equal(weights[0, 0].cpu() > 0, chosen_blocks(q[0, 0], k[0, 0], topk, causal))


def test_mixer_selects_by_its_options(device):
    x = randn(1, 150, 8, device=device)
    outputs = [
        make_mixer(f"topk(topk={topk}, selection={selection})", device=device)(x)
        for topk, selection in ((3, "exact"), (9, "exact"), (64, "block"), (128, "block"))
    ]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert (one - other).norm() > 1e-3 * one.norm()


def test_gradients_of_a_single_sequence_whose_heads_lie_side_by_side():
    """[1, H, N, dh] seen in [1, N, H * dh]: no reshape of it copies."""
    torch.manual_seed(0)
    leaf = torch.randn(1, 10, 8, dtype=torch.float64, requires_grad=True)
    apart = leaf.unflatten(-1, (2, 4)).transpose(1, 2)
    for x in (apart, apart.contiguous()):
        ops.topk_attention(x, x, x, topk=3, impl="torch").square().sum().backward(retain_graph=True)
    once, leaf.grad = leaf.grad, None
    ops.topk_attention(
        *3 * [apart.contiguous()], topk=3, impl="reference"
    ).square().sum().backward()
    torch.testing.assert_close(once, 2 * leaf.grad)


def test_gradients_come_in_any_layout(device):
    q, k, v = (randn(1, 1, 4, 4, seed=s, device=device).requires_grad_() for s in range(3))
    upstream = randn(4, 4, seed=3, device=device).t()[None, None]
    want = torch.autograd.grad(
        ops.topk_attention(q, k, v, topk=3, impl="reference"), (q, k, v), upstream
    )
    got = torch.autograd.grad(
        ops.topk_attention(q, k, v, topk=3, impl="torch"), (q, k, v), upstream
    )
    for one, other in zip(got, want, strict=True):
        assert_close(one, other)

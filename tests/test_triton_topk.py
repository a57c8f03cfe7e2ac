"""The Triton kernels of exact top-k: interpreted on the CPU (TRITON_INTERPRET=1), or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from flashmix import ops
from flashmix.errors import ImplementationError
from flashmix.mixers import TopKAttention
from flashmix.ops._triton.inverted_index import inverted_index
from flashmix.ops.topk_attention.triton import _backward_op, _op, launch
from helpers import relative_error
from triton_helpers import (
    DEVICE,
    check_case,
    check_copies_once,
    check_joins,
    each_case,
    explained,
    half_real,
    holes,
    needs_gpu,
    needs_triton,
    outputs,
    qkv,
    repeated,
    replays,
)

pytestmark = needs_triton

# B, H, K, N, dh, topk, causal, masked
CASES = [
    (1, 1, 1, 40, 16, 3, False, False),
    (2, 2, 2, 30, 24, 5, False, True),
    (1, 2, 1, 80, 40, 1, True, False),
    (1, 1, 1, 90, 96, 17, True, False),
    (1, 1, 1, 20, 8, 40, False, False),
    (1, 1, 1, 300, 16, 50, True, False),
]
GPU_CASES = [
    (4, 8, 8, 4096, 64, 32, False, False),
    (1, 8, 2, 4099, 64, 64, True, True),
    (1, 2, 2, 2047, 256, 100, False, False),
    (1, 1, 1, 3000, 128, 1000, True, False),
]


def topk(q, k, v, *, impl, topk, causal=False, mask=None):
    return ops.topk_attention(q, k, v, topk=topk, causal=causal, mask=mask, impl=impl)


def runner(count, causal, mask):
    return lambda q, k, v, impl: topk(q, k, v, impl=impl, topk=count, causal=causal, mask=mask)


@each_case(CASES)
def test_values_and_gradients_match_float64(case, dtype):
    *shape, count, causal, masked = case
    check_case(lambda mask: runner(count, causal, mask), shape, dtype, masked)


@needs_gpu
@each_case(GPU_CASES)
def test_large_shapes_keep_the_keys_with_the_highest_scores(case, dtype):
    """Neighbouring scores of a million keys differ in their last bits: compare scores, not keys."""
    *shape, count, causal, masked = case
    (q, k, v), _ = qkv(*shape, dtype=dtype)
    mask = half_real(shape, masked)
    index = _op(q, k, v, mask, count, causal)[1]
    scores = exact_scores(q, k, mask, causal)
    kept = scores.gather(-1, index.clamp(min=0).long())
    kept = kept.masked_fill(index < 0, float("-inf")).sort(descending=True).values
    best = scores.topk(count).values
    real = best > float("-inf")
    assert torch.equal(kept > float("-inf"), real)
    assert (kept - best).masked_fill(~real, 0).abs().max() <= 1e-4


@pytest.mark.parametrize("masked", [False, True])
def test_heads_of_a_token_lie_side_by_side(masked):
    def run(q, k, v, mask):
        return topk(q, k, v, impl="triton", topk=4, mask=mask)

    check_joins(run, (2, 4, 2, 20, 24), masked)


def test_between_projections_and_kernels_only_gradients_are_copied():
    check_copies_once(TopKAttention(48, num_heads=3, topk=3, impl="triton"))


def exact_scores(q, k, mask, causal):
    n = q.shape[2]
    key, _ = repeated(q, k, k)
    scores = (q.detach().double() * q.shape[3] ** -0.5) @ key.detach().double().transpose(2, 3)
    allowed = torch.ones(n, n, dtype=torch.bool, device=q.device)
    allowed = (allowed.tril() if causal else allowed).expand(q.shape[0], 1, n, n)
    if mask is not None:
        allowed = allowed & mask[:, None, None, :] & mask[:, None, :, None]
    return scores.masked_fill(~allowed, float("-inf"))


def whole_numbers(heads, n, width, seed=0):
    """q, k [1, H, N, dh] whose scores are exact in float32 and tie often; the width is a power of
    four, so that scaling them rounds nothing."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 1, heads, n, width, generator=generator).mul(0.5).round().clamp(-1, 1)
    return x.to(DEVICE).unbind(0)


def lowest_of_the_highest(scores, count):
    """The definition, by a stable sort: indices in ascending order, -1 behind the last."""
    values, order = scores.sort(dim=-1, descending=True, stable=True)
    order = order[..., :count].masked_fill(values[..., :count] == float("-inf"), 1 << 30)
    order = order.sort(-1).values
    return order.masked_fill(order == 1 << 30, -1).int()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("count", [1, 5, 60])
def test_ties_go_to_the_lower_index(count, causal):
    """Where 60 of 64 groups are asked for, and where ties overflow the room, bisection decides."""
    q, k = whole_numbers(1, 100, 16)
    index = _op(q, k, k, None, count, causal)[1]
    assert torch.equal(index, lowest_of_the_highest(exact_scores(q, k, None, causal), count))


@pytest.mark.parametrize("causal", [False, True])
def test_all_scores_alike_keep_the_first_keys(causal):
    q = torch.zeros(1, 1, 90, 16, device=DEVICE)
    k = torch.randn(1, 1, 90, 16, device=DEVICE)
    index, weights = _op(q, k, k, None, 3, causal)[1:]
    seen = torch.arange(90).clamp(max=2) + 1 if causal else torch.full((90,), 3)
    assert torch.equal((index >= 0).sum(-1)[0, 0].cpu(), seen)
    assert torch.equal(index[0, 0, -1].cpu(), torch.arange(3, dtype=torch.int32))
    assert (weights.sum(-1) - 1).abs().max() <= 1e-6


def test_both_zeros_tie():
    q = torch.tensor([[1.0] + [0.0] * 15], device=DEVICE).expand(1, 1, 20, 16).contiguous()
    k = torch.zeros(1, 1, 20, 16, device=DEVICE)
    k[:, :, ::2, 0] = -0.0
    assert torch.equal(
        _op(q, k, k, None, 3, False)[1][0, 0, 5].cpu(), torch.arange(3, dtype=torch.int32)
    )


def test_bisection_and_bound_keep_the_same_keys(monkeypatch):
    (q, k, v), _ = qkv(1, 1, 1, 80, 16)
    want = _op(q, k, v, None, 5, True)
    monkeypatch.setattr(launch, "groups", lambda *_: 1)
    got = _op(q, k, v, None, 5, True)
    assert torch.equal(got[1], want[1])
    assert relative_error(got[0], want[0].double()) <= 1e-6


def test_a_nan_shows_where_it_is_seen_and_nowhere_else():
    (q, k, v), _ = qkv(1, 1, 1, 40, 16)
    with torch.no_grad():
        k[0, 0, 20] = float("nan")
    y = topk(q, k, v, impl="triton", topk=3, causal=True)
    assert y[0, 0, :20].isfinite().all()
    assert y[0, 0, 20:].isnan().all()


def test_shared_heads_are_repeated_ones():
    (q, k, v), _ = qkv(1, 4, 2, 40, 16)
    want = topk(q, *repeated(q, k, v), impl="reference", topk=4)
    for impl in ("triton", "torch", "reference"):
        assert relative_error(topk(q, k, v, impl=impl, topk=4), want.double()) <= 2e-6


def test_an_empty_batch():
    leaves, upstream = qkv(0, 2, 2, 20, 16)
    got = outputs(lambda *x: topk(*x, impl="triton", topk=3), leaves, upstream)
    assert all(one.shape == (0, 2, 20, 16) for one in got)


def test_same_input_gives_the_same_bits():
    """Many queries keep the same keys here, so many gradients meet in one sum."""
    leaves, upstream = qkv(1, 2, 1, 40, 16)
    with torch.no_grad():
        leaves[1][:, :, 7] *= 5
    once, again = (
        outputs(lambda *x: topk(*x, impl="triton", topk=4), leaves, upstream) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_inverse_lists_each_targets_places_in_order():
    index = torch.tensor([[[[2, 0], [0, -1]], [[1, 2], [2, 0]]]], dtype=torch.int32, device=DEVICE)
    places, offsets = inverted_index(index, 3, 1)
    assert offsets.tolist() == [0, 2, 2, 3, 4, 5, 7]
    assert places.tolist() == [1, 2, 0, 7, 4, 5, 6, 3]
    places, offsets = inverted_index(index, 3, 2)
    assert offsets.tolist() == [0, 3, 4, 7]
    assert places.tolist() == [1, 2, 7, 4, 0, 5, 6, 3]


@pytest.mark.parametrize("width", [8, 40, 64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("count", [1, 32, 64, 192])
def test_tiles_fit_in_shared_memory(width, dtype, count):
    """A tile of keys for each stage beside the queries, in 227 KB less what reductions need."""
    how = launch.config(width, count, dtype)
    row = launch.padded(width) * dtype.itemsize
    keys = min(launch.groups(width, count, dtype), 128)
    assert (how.stages * keys + how.queries) * row <= 200 * 1024
    assert (how.collect_stages * how.collect_keys + how.collect_queries) * row <= 200 * 1024
    assert launch.slots(count) >= count


@pytest.mark.usefixtures("unmeasured")
def test_refusals_and_what_auto_says():
    x = torch.zeros(1, 1, 5000, 8, device=DEVICE)
    with pytest.raises(ImplementationError, match="topk up to 4096, not 4500"):
        topk(x, x, x, impl="triton", topk=4500)
    told = explained("topk_attention", (1, 8, 4096, 64), topk=32)
    assert told.impl == "torch"
    assert "can run" in told.alternatives["triton"]
    told = explained("topk_attention", (1, 8, 4096, 512), topk=32)
    assert "up to 256 wide" in told.alternatives["triton"]


def test_registration_holds():
    (q, k, v), upstream = qkv(1, 2, 1, 6, 8)
    torch.library.opcheck(_op.op, (q, k, v, None, 2, True))
    saved = [x.detach() for x in (upstream, q, k, v, *_op(q, k, v, None, 2, False))]
    torch.library.opcheck(_backward_op.op, tuple(saved))


def test_compiles_without_graph_breaks():
    leaves, upstream = qkv(1, 1, 1, 20, 16)
    compiled = torch.compile(
        lambda *x: topk(*x, impl="triton", topk=4) * 2, fullgraph=True, backend="aot_eager"
    )
    got = outputs(compiled, leaves, upstream)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    want = outputs(lambda *x: topk(*x, impl="reference", topk=4) * 2, wide, upstream)
    for one, exact in zip(got, want, strict=True):
        assert relative_error(one, exact) <= 2e-6


@needs_gpu
def test_holds_no_n_by_n_tensor():
    n, count = 8192, 32
    leaves, upstream = qkv(1, 2, 2, n, 64, dtype=torch.float16)
    outputs(lambda *x: topk(*x, impl="triton", topk=count), leaves, upstream)
    torch.cuda.synchronize()
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outputs(lambda *x: topk(*x, impl="triton", topk=count), leaves, upstream)
    # Candidates, kept keys, weights, slopes and a sort of pairs: under 128 bytes a kept key.
    assert torch.cuda.max_memory_allocated() - base <= 2 * n * (128 * count + 12 * 64 * 2)


@needs_gpu
def test_replays_in_a_cuda_graph_and_never_waits_for_the_host():
    leaves, upstream = qkv(2, 4, 2, 512, 64)
    mask = holes(2, 512)
    got = replays(lambda *x: topk(*x, impl="triton", topk=8, mask=mask), leaves, upstream)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    want = outputs(lambda *x: topk(*x, impl="reference", topk=8, mask=mask), wide, upstream)
    for one, exact in zip(got, want, strict=True):
        assert relative_error(one, exact) <= 2e-6


def test_few_candidates_pass_the_bound():
    """On random scores the room is never needed: the search has nothing to do."""
    (q, k, _), _ = qkv(1, 1, 1, 1024, 16)
    count, groups = 16, 64
    scores = exact_scores(q, k, None, False)[0, 0]
    bound = scores.view(1024, -1, groups).amax(1).sort(descending=True).values[:, count - 1]
    candidates = (scores >= bound[:, None]).sum(-1)
    assert count <= candidates.min() and candidates.max() <= launch.slots(count)

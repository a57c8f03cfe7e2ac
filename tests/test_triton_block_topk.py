"""The Triton kernels of block top-k: interpreted on the CPU (TRITON_INTERPRET=1), or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from flashmix import ops
from flashmix.mixers import TopKAttention
from flashmix.ops.block_topk_attention import blocks
from flashmix.ops.block_topk_attention.triton import _backward_op, _op
from helpers import relative_error
from triton_helpers import (
    check,
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

# B, H, K, N, dh, topk, causal, masked, block
CASES = [
    (1, 1, 1, 70, 16, 20, False, False, 16),
    (2, 2, 2, 70, 24, 32, False, True, 16),
    (2, 2, 1, 70, 40, 20, True, True, 16),
    (1, 2, 1, 150, 80, 64, True, False, 64),
    (1, 1, 1, 70, 136, 32, False, False, 32),
    (1, 1, 1, 30, 16, 12, True, False, 5),
    (1, 1, 1, 30, 16, 100, False, False, 16),
]
GPU_CASES = [
    (1, 8, 8, 8192, 64, 512, False, False, 64),
    (2, 8, 2, 4099, 64, 256, True, True, 64),
    (1, 2, 2, 2047, 256, 128, False, False, 64),
]


def block_topk(q, k, v, *, impl, topk, causal=False, mask=None):
    return ops.topk_attention(
        q, k, v, topk=topk, selection="block", causal=causal, mask=mask, impl=impl
    )


def runner(count, causal, mask):
    return lambda q, k, v, impl: block_topk(
        q, k, v, impl=impl, topk=count, causal=causal, mask=mask
    )


@pytest.fixture(autouse=True)
def no_block_left_small(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", blocks.BLOCK)


@each_case(CASES)
def test_values_and_gradients_match_float64(case, dtype, monkeypatch):
    *shape, count, causal, masked, block = case
    monkeypatch.setattr(blocks, "BLOCK", block)
    check_case(lambda mask: runner(count, causal, mask), shape, dtype, masked)


@needs_gpu
@each_case(GPU_CASES)
def test_large_shapes_match_float64(case, dtype):
    *shape, count, causal, masked, _ = case
    leaves, upstream = qkv(*shape, dtype=dtype)
    mask = half_real(shape, masked)
    check(runner(count, causal, mask), leaves, upstream)


@pytest.mark.parametrize("masked", [False, True])
def test_heads_of_a_token_lie_side_by_side(masked, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)

    def run(q, k, v, mask):
        return block_topk(q, k, v, impl="triton", topk=20, mask=mask)

    check_joins(run, (2, 4, 2, 40, 24), masked)


def test_between_projections_and_kernels_only_gradients_are_copied(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    check_copies_once(TopKAttention(48, num_heads=3, topk=20, selection="block", impl="triton"))


def test_shared_heads_are_repeated_ones(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    (q, k, v), _ = qkv(1, 4, 2, 50, 16)
    want = block_topk(q, *repeated(q, k, v), impl="reference", topk=20)
    for impl in ("triton", "reference"):
        assert relative_error(block_topk(q, k, v, impl=impl, topk=20), want.double()) <= 2e-6


def test_heads_side_by_side():
    (q, k, v), _ = qkv(1, 2, 2, 40, 16)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    y = block_topk(*strided, impl="triton", topk=20)
    assert torch.equal(y, block_topk(q, k, v, impl="triton", topk=20))


def test_an_empty_batch():
    leaves, upstream = qkv(0, 2, 2, 20, 16)
    got = outputs(lambda *x: block_topk(*x, impl="triton", topk=3), leaves, upstream)
    assert all(one.shape == (0, 2, 20, 16) for one in got)


def test_same_input_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    leaves, upstream = qkv(1, 2, 1, 70, 16)
    once, again = (
        outputs(lambda *x: block_topk(*x, impl="triton", topk=20), leaves, upstream)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.usefixtures("unmeasured")
def test_what_auto_says():
    told = explained("block_topk_attention", (1, 8, 65536, 64), topk=4096)
    assert told.impl == "torch"
    assert "can run" in told.alternatives["triton"]


def test_registration_holds(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    (q, k, v), upstream = qkv(1, 2, 1, 20, 8)
    mask = torch.arange(20, device=q.device)[None] < 18
    torch.library.opcheck(_op.op, (q, k, v, mask, 20, True))
    saved = [x.detach() for x in (upstream, q, k, v, *_op(q, k, v, None, 20, False))]
    torch.library.opcheck(_backward_op.op, (*saved, None, False))


def test_compiles_without_graph_breaks():
    leaves, upstream = qkv(1, 1, 1, 40, 16)
    compiled = torch.compile(
        lambda *x: block_topk(*x, impl="triton", topk=4) * 2, fullgraph=True, backend="aot_eager"
    )
    got = outputs(compiled, leaves, upstream)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    want = outputs(lambda *x: block_topk(*x, impl="reference", topk=4) * 2, wide, upstream)
    for one, exact in zip(got, want, strict=True):
        assert relative_error(one, exact) <= 2e-6


@needs_gpu
def test_replays_in_a_cuda_graph_and_never_waits_for_the_host():
    leaves, upstream = qkv(2, 4, 2, 512, 64)
    mask = holes(2, 512)
    got = replays(lambda *x: block_topk(*x, impl="triton", topk=128, mask=mask), leaves, upstream)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    want = outputs(lambda *x: block_topk(*x, impl="reference", topk=128, mask=mask), wide, upstream)
    for one, exact in zip(got, want, strict=True):
        assert relative_error(one, exact) <= 2e-6

"""The Triton sliding-window kernels: interpreted on the CPU (TRITON_INTERPRET=1), or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from flashmix import ops
from flashmix.errors import ArgumentError, ImplementationError
from flashmix.mixers import LocalAttention
from flashmix.ops.local_attention.triton import _backward_op, _op
from helpers import relative_error
from triton_helpers import (
    DEVICE,
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

# B, H, K, N, dh, window, causal, masked
CASES = [
    (1, 1, 1, 40, 16, 9, False, False),
    (2, 2, 2, 70, 24, 20, False, True),
    (2, 4, 2, 100, 40, 21, True, True),
    (1, 2, 2, 150, 8, 64, True, False),
    (1, 1, 1, 200, 96, 33, False, False),
    (1, 2, 1, 130, 80, 500, False, False),
    (1, 1, 1, 33, 136, 3, True, False),
    (2, 2, 1, 90, 16, (40, 3), False, True),
    (1, 1, 1, 70, 16, (0, 25), False, False),
]
GPU_CASES = [
    (4, 8, 8, 4096, 64, 128, False, False),
    (1, 8, 2, 16384, 64, 512, True, True),
    (1, 2, 2, 2047, 256, 100, False, True),
]


def local(q, k, v, *, impl, window, causal=False, mask=None):
    return ops.local_attention(q, k, v, window=window, causal=causal, mask=mask, impl=impl)


def runner(window, causal, mask):
    return lambda q, k, v, impl: local(q, k, v, impl=impl, window=window, causal=causal, mask=mask)


@each_case(CASES)
def test_values_and_gradients_match_float64(case, dtype):
    *shape, window, causal, masked = case
    check_case(lambda mask: runner(window, causal, mask), shape, dtype, masked)


@needs_gpu
@each_case(GPU_CASES)
def test_large_shapes_match_the_other_road(case, dtype):
    *shape, window, causal, masked = case
    leaves, upstream = qkv(*shape, dtype=dtype)
    mask = half_real(shape, masked)
    run = runner(window, causal, mask)
    check(run, leaves, upstream, reference=lambda *x: run(*x, impl="torch"))


@needs_gpu
def test_a_million_tokens():
    leaves, upstream = qkv(1, 8, 8, 1 << 20, 64, dtype=torch.bfloat16)
    y, *grads = outputs(lambda *x: local(*x, impl="triton", window=512), leaves, upstream)
    tail = [x[:, :, -2048:].detach() for x in leaves]
    want = ops.local_attention(*(x.double() for x in tail), window=512, impl="torch")
    assert relative_error(y[:, :, -1024:], want[:, :, -1024:]) <= 0.01
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("masked", [False, True])
def test_heads_of_a_token_lie_side_by_side(masked):
    def run(q, k, v, mask):
        return local(q, k, v, impl="triton", window=9, mask=mask)

    check_joins(run, (2, 4, 2, 40, 24), masked)


def test_between_projections_and_kernels_only_gradients_are_copied():
    check_copies_once(LocalAttention(48, num_heads=3, window=9, impl="triton"))


def test_shared_heads_are_repeated_ones():
    (q, k, v), _ = qkv(1, 4, 2, 50, 16)
    want = local(q, *repeated(q, k, v), impl="reference", window=9)
    for impl in ("triton", "torch", "reference"):
        assert relative_error(local(q, k, v, impl=impl, window=9), want.double()) <= 2e-6


@pytest.mark.parametrize("heads", [3, 0])
def test_heads_that_do_not_divide_are_refused(heads):
    q = torch.zeros(1, 4, 5, 8, device=DEVICE)
    k = torch.zeros(1, heads, 5, 8, device=DEVICE)
    with pytest.raises(ArgumentError, match="k must have"):
        local(q, k, k, impl="triton", window=3)


def test_heads_side_by_side_and_expanded_gradients():
    x = torch.randn(2, 40, 3, 2, 16, device=DEVICE, requires_grad=True)
    leaves = [one.transpose(1, 2) for one in x.unbind(2)]
    upstream = torch.ones(1, device=DEVICE).expand(2, 2, 40, 16)
    y = local(*leaves, impl="triton", window=9)
    (got,) = torch.autograd.grad(y, x, upstream)
    wide = x.detach().double().requires_grad_()
    want = local(*(one.transpose(1, 2) for one in wide.unbind(2)), impl="reference", window=9)
    (want_grad,) = torch.autograd.grad(want, wide, upstream.double())
    assert relative_error(y, want) <= 2e-6
    assert relative_error(got, want_grad) <= 2e-6


def test_a_window_of_one_is_the_value_itself():
    (q, k, v), _ = qkv(1, 2, 2, 33, 16)
    assert relative_error(local(q, k, v, impl="triton", window=1), v) <= 2e-6


def test_an_empty_batch():
    (q, k, v), upstream = qkv(0, 2, 2, 20, 16)
    got = outputs(lambda *x: local(*x, impl="triton", window=9), (q, k, v), upstream)
    assert all(one.shape == (0, 2, 20, 16) for one in got)


def test_causal_outputs_know_no_later_token():
    (q, k, v), _ = qkv(1, 1, 1, 90, 16)
    full = local(q, k, v, impl="triton", window=9, causal=True)
    with torch.no_grad():
        for x in (k, v):
            x[:, :, 40:] = 100
    later = local(q, k, v, impl="triton", window=9, causal=True)
    assert torch.equal(later[:, :, :40], full[:, :, :40])


def test_same_input_gives_the_same_bits():
    leaves, upstream = qkv(1, 2, 1, 100, 16)
    once, again = (
        outputs(lambda *x: local(*x, impl="triton", window=20), leaves, upstream) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_large_scores_neither_overflow_nor_vanish():
    leaves, upstream = qkv(1, 1, 1, 60, 16)
    with torch.no_grad():
        leaves[0].mul_(100)
    got = outputs(lambda *x: local(*x, impl="triton", window=20), leaves, upstream)
    assert all(one.isfinite().all() for one in got)
    want = local(*(x.detach().double() for x in leaves), impl="reference", window=20)
    # Scores of hundreds in float32 are off by 1e-5 of themselves at most, and weights by as much.
    assert relative_error(got[0], want) <= 1e-3


@pytest.mark.usefixtures("unmeasured")
def test_refusals_and_what_auto_says():
    wide = torch.zeros(1, 1, 4, 257, device=DEVICE)
    with pytest.raises(ImplementationError, match="up to 256 wide, not 257"):
        local(wide, wide, wide, impl="triton", window=3)
    double = torch.zeros(1, 1, 4, 16, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ImplementationError, match="does not support"):
        local(double, double, double, impl="triton", window=3)
    told = explained("local_attention", (1, 8, 4096, 64), window=128)
    assert told.impl == "torch"
    assert "can run" in told.alternatives["triton"]


def test_registration_holds():
    (q, k, v), upstream = qkv(1, 2, 1, 16, 8)
    mask = torch.arange(16, device=DEVICE)[None] < 13
    torch.library.opcheck(_op.op, (q, k, v, mask, 5, True))
    y, logarithm = _op(q, k, v, None, 5, False)
    saved = [x.detach() for x in (upstream, q, k, v, y, logarithm)]
    torch.library.opcheck(_backward_op.op, (*saved, None, 5, False))


def test_compiles_without_graph_breaks():
    (q, k, v), upstream = qkv(1, 2, 2, 30, 16)
    compiled = torch.compile(
        lambda *x: local(*x, impl="triton", window=9) * 2, fullgraph=True, backend="aot_eager"
    )
    got = outputs(compiled, [q, k, v], upstream)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = outputs(lambda *x: local(*x, impl="reference", window=9) * 2, wide, upstream)
    for one, exact in zip(got, want, strict=True):
        assert relative_error(one, exact) <= 2e-6


@needs_gpu
def test_replays_in_a_cuda_graph_and_never_waits_for_the_host():
    leaves, upstream = qkv(2, 4, 2, 512, 64)
    mask = holes(2, 512)
    got = replays(lambda *x: local(*x, impl="triton", window=65, mask=mask), leaves, upstream)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    want = outputs(lambda *x: local(*x, impl="reference", window=65, mask=mask), wide, upstream)
    for one, exact in zip(got, want, strict=True):
        assert relative_error(one, exact) <= 2e-6


def test_auto_compiles_for_any_length_at_once():
    """Sizes that a graph leaves open decide nothing, and recompile nothing."""
    torch.compiler.reset()
    compiled = torch.compile(
        lambda q, k, v: (
            ops.local_attention(q, k, v, window=9) + ops.topk_attention(q, k, v, topk=4)
        ),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for n in (20, 24, 31):
        (q, k, v), _ = qkv(1, 2, 2, n, 16)
        want = ops.local_attention(q, k, v, window=9) + ops.topk_attention(q, k, v, topk=4)
        with torch.compiler.set_stance("default" if n == 20 else "fail_on_recompile"):
            assert relative_error(compiled(q, k, v), want.double()) <= 2e-6

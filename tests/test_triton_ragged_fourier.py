"""Fourier attention's kernels for sequences of any lengths, interpreted or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from flashmix import ops
from flashmix.ops._triton.availability import DTYPES
from flashmix.ops._triton.sequences import Sequences
from flashmix.ops.fourier.triton import ragged
from helpers import randn
from ragged_helpers import LENGTHS, check, check_layouts, offsets_of, tokens
from triton_helpers import DEVICE, explained, needs_gpu, needs_triton

pytestmark = needs_triton

GPU_CASES = [((512, 131, 77, 0, 509), 12, 64), ((4096, 5, 1009), 6, 128), ((197, 40), 8, 32)]


def results(v, mask, impl, upstream):
    y = ops.fourier(v, mask=mask, impl=impl)
    return y, *torch.autograd.grad(y, v, upstream.to(y.dtype))


def check_case(lengths, heads, width, dtype, scale=1.0, grad_scale=1.0):
    x, mask = tokens(lengths, heads, width, dtype=dtype)
    upstream, _ = tokens(lengths, heads, width, dtype=dtype, seed=1)
    v = (x * scale).transpose(1, 2).requires_grad_()
    upstream = (upstream * grad_scale).transpose(1, 2)
    got = results(v, mask, "triton_ragged", upstream)
    wide = v.detach().double().requires_grad_()
    check(got, results(wide, mask, "reference", upstream), dtype)
    assert got[0].dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_of_any_lengths_match_float64(dtype):
    check_case(LENGTHS, 2, 12, dtype)


@pytest.mark.parametrize("scale", [1e-2, 100.0])
def test_neither_small_nor_large_numbers_leave_the_range_of_float16(scale):
    check_case((40, 9), 1, 16, torch.float16, scale, 3e3)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lengths", "heads", "width"), GPU_CASES, ids=str)
def test_large_batches_match_float64(lengths, heads, width, dtype):
    check_case(lengths, heads, width, dtype)


def test_lengths_without_padding_match_float64():
    v = randn(2, 1, 37, 20, dtype=torch.float32, device=DEVICE).requires_grad_()
    got = results(v, None, "triton_ragged", torch.ones_like(v))
    wide = v.detach().double().requires_grad_()
    check(got, results(wide, None, "reference", torch.ones_like(v)), v.dtype)


def test_packed_padded_and_alone_have_the_same_bits_whatever_the_neighbours_hold():
    check_layouts(lambda where, v: ragged.mix(v, where), 1, 1, 12)
    check_layouts(lambda where, grad, v: ragged.gradient(grad, v, where), 2, 1, 12)


def test_packed_heads_have_the_gradients_of_the_reference():
    lengths = (7, 0, 10)
    x, mask = tokens(lengths, 2, 12)

    def packed(v, impl):
        v = v[mask].requires_grad_()
        y = ops.fourier(v, cu_seqlens=offsets_of(lengths), impl=impl)
        return y, *torch.autograd.grad(y, v, torch.ones_like(y))

    check(packed(x, "triton_ragged"), packed(x.double(), "reference"), x.dtype)


def test_nothing_stays_nothing():
    for shape, where in (
        ((0, 5, 2, 4), Sequences(0, 5)),
        ((0, 2, 4), Sequences(0, 0, offsets=offsets_of(()))),
    ):
        v = torch.empty(shape, device=DEVICE)
        assert ragged.mix(v, where).shape == ragged.gradient(v, v, where).shape == shape


def test_registration_holds():
    v = randn(2, 6, 1, 4, dtype=torch.float32, device=DEVICE)
    torch.library.opcheck(ragged._op.op, (v.requires_grad_(), None))


@pytest.mark.parametrize("direction", ["forward", "training"])
def test_padded_batches_on_a_gpu_never_run_one_call_a_length(direction):
    options = {"direction": direction, "masked": True, "machine": "NVIDIA H200"}
    assert explained("fourier", (32, 12, 512, 64), **options).impl == "triton_ragged"


@pytest.mark.parametrize("op", ["fnet", "spectral", "fourier"])
@pytest.mark.parametrize(("dtype", "n"), [(torch.float64, 64), (torch.float16, 1 << 16)], ids=str)
def test_padded_batches_that_these_kernels_do_not_take_never_run_the_formula(op, dtype, n):
    shape = (2, 4, n, 64) if op == "fourier" else (2, n, 256)
    options = {"masked": True, "modes": n} if op == "spectral" else {"masked": True}
    found = ops.explain(op, shape, dtype, "cuda", machine="NVIDIA H200", **options)
    assert found.impl not in ("reference", "triton_ragged")


@needs_gpu
def test_a_graph_replays_with_other_lengths_and_never_waits_for_the_host():
    _, mask = tokens((512, 131, 7), 1)
    v = randn(3, 4, 512, 64, dtype=torch.float32, device=DEVICE).requires_grad_()
    upstream = torch.randn_like(v)

    def run():
        return results(v, mask, "triton_ragged", upstream)

    run()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            got = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    _, other = tokens((512, 3, 400, 509), 1)
    mask.copy_(other[1:])
    graph.replay()
    wide = v.detach().double().requires_grad_()
    check(got, results(wide, mask, "reference", upstream), v.dtype)

"""The spectral filter's kernels for sequences of any lengths, interpreted or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from flashmix import ops
from flashmix.ops._triton.availability import DTYPES
from flashmix.ops._triton.sequences import Sequences
from flashmix.ops.spectral.triton import ragged
from helpers import randn
from ragged_helpers import LENGTHS, check, check_layouts, offsets_of, tokens
from triton_helpers import DEVICE, explained, needs_gpu, needs_triton

pytestmark = needs_triton

FEW, ALL = 9, 100
CASES = [(dtype, *case) for dtype in DTYPES for case in ((FEW, False), (ALL, True))]
GPU_CASES = [((512, 131, 77, 0, 509), 768, 128), ((4096, 5, 1009), 768, 384)]


def parameters(modes, dim):
    weight = randn(modes, dim, 2, seed=7, dtype=torch.float32, device=DEVICE)
    return weight.requires_grad_(), weight[0, :, 1].detach().clone().requires_grad_()


def results(x, weight, bias, mask, unitary, impl, upstream):
    y = ops.spectral(x, weight, bias, mask=mask, unitary=unitary, impl=impl)
    return y, *torch.autograd.grad(y, (x, weight, bias), upstream.to(y.dtype))


def check_case(lengths, dim, modes, unitary, dtype):
    x, mask = tokens(lengths, dim, dtype=dtype)
    upstream, _ = tokens(lengths, dim, dtype=dtype, seed=1)
    x.requires_grad_()
    given = parameters(modes, dim)
    got = results(x, *given, mask, unitary, "triton_ragged", upstream)
    wide = [one.detach().double().requires_grad_() for one in (x, *given)]
    check(got, results(*wide, mask, unitary, "reference", upstream), dtype)
    assert got[0].dtype == dtype


@pytest.mark.parametrize(("dtype", "modes", "unitary"), CASES, ids=str)
def test_values_and_gradients_of_any_lengths_match_float64(dtype, modes, unitary):
    check_case(LENGTHS, 20, modes, unitary, dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lengths", "dim", "modes"), GPU_CASES, ids=str)
@pytest.mark.parametrize("unitary", [False, True])
def test_large_batches_match_float64(lengths, dim, modes, dtype, unitary):
    check_case(lengths, dim, modes, unitary, dtype)


@pytest.mark.parametrize("shape", [(2, 1, 4), (1, 37, 20)], ids=str)
def test_lengths_without_padding_match_float64(shape):
    x = randn(*shape, dtype=torch.float32, device=DEVICE).transpose(1, 2).contiguous()
    x = x.transpose(1, 2).requires_grad_()
    given = parameters(FEW, shape[2])
    upstream = torch.ones(shape, device=DEVICE)
    got = results(x, *given, None, False, "triton_ragged", upstream)
    wide = [one.detach().double().requires_grad_() for one in (x, *given)]
    check(got, results(*wide, None, False, "reference", upstream), x.dtype)


def test_packed_padded_and_alone_have_the_same_bits_whatever_the_neighbours_hold():
    weight, bias = (one.detach() for one in parameters(ALL, 20))
    check_layouts(lambda where, x: ragged.filtered(x, weight, bias, where, False), 1, 20)
    few = weight[:FEW].contiguous()
    check_layouts(lambda where, grad, x: ragged.gradients(grad, x, few, where, True)[0], 2, 20)


def test_packed_gradients_are_the_padded_ones_however_the_filters_are_grouped(monkeypatch):
    lengths = (0, 7, 2, 10)
    x, mask = tokens(lengths, 20)
    given = parameters(ALL, 20)
    flat, upstream = x[mask].requires_grad_(), torch.ones_like(x)
    want = results(x.requires_grad_(), *given, mask, False, "triton_ragged", upstream)
    monkeypatch.setattr(ragged, "_GROUP", 3)
    y = ops.spectral(flat, *given, cu_seqlens=offsets_of(lengths), impl="triton_ragged")
    got = torch.autograd.grad(y, (flat, *given), upstream[mask])
    check((y, *got), (want[0][mask], want[1][mask], *want[2:]), x.dtype)


def test_nothing_has_gradients_of_zero():
    weight, bias = (one.detach() for one in parameters(FEW, 4))
    for shape, where in (
        ((0, 5, 4), Sequences(0, 5)),
        ((0, 4), Sequences(0, 0, offsets=offsets_of(()))),
    ):
        x = torch.empty(shape, device=DEVICE)
        assert ragged.filtered(x, weight, bias, where, False).shape == shape
        got = ragged.gradients(x, x, weight, where, False)
        assert [one.shape for one in got] == [x.shape, weight.shape, bias.shape]
        assert not any(one.any() for one in got)


def test_registration_holds():
    x, mask = randn(2, 6, 4, dtype=torch.float32, device=DEVICE), None
    torch.library.opcheck(ragged.spectral.op, (x.requires_grad_(), *parameters(3, 4), mask, False))


@pytest.mark.parametrize("direction", ["forward", "training"])
def test_padded_batches_on_a_gpu_never_run_one_call_a_length(direction):
    options = {"direction": direction, "masked": True, "modes": 128, "machine": "NVIDIA H200"}
    assert explained("spectral", (32, 512, 768), **options).impl == "triton_ragged"


@needs_gpu
def test_a_graph_replays_with_other_lengths_and_never_waits_for_the_host():
    lengths, others = (512, 131, 7), (3, 400, 509)
    x, mask = tokens(lengths, 256)
    full = randn(*x.shape, dtype=x.dtype, device=DEVICE).requires_grad_()
    given = parameters(32, 256)
    upstream = torch.randn_like(full)

    def run():
        return results(full, *given, mask, False, "triton_ragged", upstream)

    run()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            got = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    _, other = tokens((512, *others), 1)
    mask.copy_(other[1:])
    graph.replay()
    wide = [one.detach().double().requires_grad_() for one in (full, *given)]
    check(got, results(*wide, mask, False, "reference", upstream), x.dtype)

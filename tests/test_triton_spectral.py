"""The Triton spectral kernels: interpreted on the CPU (TRITON_INTERPRET=1), or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from flashmix import ops
from flashmix.errors import ImplementationError
from flashmix.ops._triton.availability import DTYPES, INTERPRETED
from flashmix.ops.spectral.triton import launch
from flashmix.ops.spectral.triton import spectral as spectral_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1"
)

SHAPES = [
    (2, 1, 4, 3),
    (1, 2, 4, 3),
    (2, 37, 16, 9),
    (1, 37, 20, 30),
    (2, 64, 20, 8),
    (1, 48, 16, 25),
    (1, 600, 24, 40),
    (1, 1200, 16, 200),
]
GPU_SHAPES = [(2, 4096, 768, 128), (1, 16384, 768, 128), (2, 2047, 256, 64)]
LARGE = [pytest.param(shape, marks=pytest.mark.slow) for shape in GPU_SHAPES]
SHAPES += [] if DEVICE == "cpu" else LARGE


def relative(got, want):
    want = want.detach()
    return float((got.detach().double() - want).norm() / want.norm().clamp(min=1e-30))


def case(shape, dtype):
    torch.manual_seed(0)
    batch, seq_len, dim, modes = shape
    x = torch.randn(batch, seq_len, dim, device=DEVICE).to(dtype).requires_grad_()
    weight = torch.randn(modes, dim, 2, device=DEVICE, requires_grad=True)
    bias = torch.randn(dim, device=DEVICE, requires_grad=True)
    return x, weight, bias


def run(inputs, upstream, **options):
    y = ops.spectral(*inputs, **options)
    return y, *torch.autograd.grad(y, inputs, upstream.to(y.dtype))


def widened(inputs):
    return [one.detach().double().requires_grad_() for one in inputs]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unitary", [False, True])
def test_values_and_gradients_match_float64(shape, dtype, unitary):
    inputs = case(shape, dtype)
    upstream = torch.randn(shape[:3], device=DEVICE).to(dtype)
    got = run(inputs, upstream, unitary=unitary, impl="triton")
    want = run(widened(inputs), upstream, unitary=unitary, impl="reference")
    assert got[0].dtype == dtype
    for one, exact in zip(got, want, strict=True):
        if dtype == torch.float32:
            assert relative(one, exact) <= 1e-6
        else:
            # A handful of numbers can be unlucky: allow them the worst case, not the average.
            least = torch.finfo(dtype).eps / (5 if shape[1] > 16 else 2)
            assert relative(one, exact) <= 2.5 * max(relative(exact.to(dtype), exact), least)


@pytest.mark.parametrize("unitary", [False, True])
def test_padding_law(unitary):
    inputs = case((3, 24, 12, 7), torch.float32)
    mask = torch.ones(3, 24, dtype=torch.bool, device=DEVICE)
    mask[0, 20:], mask[1, :5], mask[2, 7] = False, False, False
    upstream = torch.randn(3, 24, 12, device=DEVICE)
    got = run(inputs, upstream, mask=mask, unitary=unitary, impl="triton")
    want = run(widened(inputs), upstream, mask=mask, unitary=unitary, impl="reference")
    for one, exact in zip(got, want, strict=True):
        assert relative(one, exact) <= 1e-6


def test_strided_and_empty_inputs():
    x, weight, bias = case((2, 12, 24, 5), torch.float32)
    weight, bias = weight[:, :12], bias[:12]
    x = x.transpose(1, 2)
    want = ops.spectral(x.double(), weight.double(), bias.double(), impl="reference")
    assert relative(ops.spectral(x, weight, bias, impl="triton"), want) <= 1e-6
    assert ops.spectral(x[:0], weight, bias, impl="triton").shape == (0, 24, 12)


def test_more_sequences_than_a_grid_holds(monkeypatch):
    monkeypatch.setattr("flashmix.ops._triton.launch.MOST_SEQUENCES", 2)
    inputs = case((5, 24, 12, 7), torch.float32)
    upstream = torch.randn(5, 24, 12, device=DEVICE)
    got = run(inputs, upstream, impl="triton")
    want = run(widened(inputs), upstream, impl="reference")
    for one, exact in zip(got, want, strict=True):
        assert relative(one, exact) <= 1e-6


def test_a_bias_may_be_strided():
    x, weight, _ = case((2, 24, 12, 5), torch.float32)
    bias = torch.randn(24, device=DEVICE)[::2]
    want = ops.spectral(x.double(), weight.double(), bias.double(), impl="reference")
    assert relative(ops.spectral(x, weight, bias, impl="triton"), want) <= 1e-6


def test_no_bias():
    x, weight, _ = case((2, 24, 12, 5), torch.float32)
    want = ops.spectral(x.double(), weight.double(), impl="reference")
    assert relative(ops.spectral(x, weight, impl="triton"), want) <= 1e-6


def test_refusals_name_the_reason_and_auto_runs_another():
    x, weight, bias = case((1, 24, 12, 5), torch.float32)
    with pytest.raises(ImplementationError, match="no causal filter"):
        ops.spectral(x, weight, bias, causal=True, impl="triton")
    with pytest.raises(ImplementationError, match="float64 weight"):
        ops.spectral(x, weight.double(), impl="triton")
    many = torch.randn(600, 2, 2, device=DEVICE)
    with pytest.raises(ImplementationError, match="at most 512 modes"):
        ops.spectral(torch.randn(1, 1200, 2, device=DEVICE), many, impl="triton")
    assert ops.spectral(x, weight, bias, causal=True).shape == x.shape


def test_registration_holds():
    inputs = case((2, 24, 12, 5), torch.float32)
    torch.library.opcheck(spectral_triton.op, (*inputs, None, False))


def test_compiles_without_graph_breaks():
    inputs = case((2, 24, 12, 5), torch.float32)
    compiled = torch.compile(lambda *a: ops.spectral(*a, impl="triton") * 2, fullgraph=True)
    want = 2 * ops.spectral(*(one.double() for one in inputs), impl="reference")
    assert relative(compiled(*inputs), want) <= 1e-6


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_replays_in_a_cuda_graph_and_never_waits_for_the_host():
    inputs = case((2, 512, 256, 32), torch.float32)
    upstream = torch.randn(2, 512, 256, device=DEVICE)
    run(inputs, upstream, impl="triton")
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            got = run(inputs, upstream, impl="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        inputs[0].copy_(torch.randn_like(inputs[0]))
    graph.replay()
    want = run(widened(inputs), upstream, impl="reference")
    for one, exact in zip(got, want, strict=True):
        assert relative(one, exact) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_sums_are_cut_into_chunks(dtype, monkeypatch):
    monkeypatch.setattr(launch, "_CHUNK", 64)
    inputs = case((3, 600, 20, 40), dtype)
    upstream = torch.randn(3, 600, 20, device=DEVICE).to(dtype)
    got = run(inputs, upstream, impl="triton")
    want = run(widened(inputs), upstream, impl="reference")
    for one, exact in zip(got, want, strict=True):
        least = 4e-7 if dtype == torch.float32 else torch.finfo(dtype).eps / 5
        assert relative(one, exact) <= 2.5 * max(relative(exact.to(dtype), exact), least)


# The interpreter's products are numpy's, whose bits depend on the tile: one of 16 modes stays.
NEIGHBOURS = [((3, 260, 20, 9), 32), ((2, 67, 20, 16), 1024)]
NEIGHBOURS += (
    []
    if DEVICE == "cpu"
    else [((33, n, 768, 128), 1024) for n in (197, 512, 4096)] + [((3, 32768, 768, 128), 1024)]
)


@pytest.mark.parametrize("dtype", DTYPES if DEVICE == "cuda" else DTYPES[:1], ids=str)
@pytest.mark.parametrize(("shape", "chunk"), NEIGHBOURS, ids=str)
def test_a_sequence_has_the_same_bits_alone_and_in_any_batch(shape, chunk, dtype, monkeypatch):
    """On GPUs of any size, and whatever stands in the other sequences."""
    monkeypatch.setattr(launch, "_CHUNK", chunk)
    x, weight, bias = case(shape, dtype)
    upstream = torch.randn(shape[:3], device=DEVICE).to(dtype)
    counts = (2, 4) if DEVICE == "cpu" else (launch.processors(x.device), 7)

    def of(x, upstream, processors):
        monkeypatch.setattr(launch, "processors", lambda device: processors)
        x = x.detach().requires_grad_()
        return run((x, weight, bias), upstream, impl="triton")[:2]

    for row in (0, shape[0] - 1):
        own = torch.arange(shape[0], device=DEVICE) == row
        spoilt = x.detach().where(own[:, None, None], float("nan"))
        want = of(x[row : row + 1], upstream[row : row + 1], counts[0])
        for tokens, count in zip((x, spoilt), counts, strict=True):
            for together, alone in zip(of(tokens, upstream, count), want, strict=True):
                assert torch.equal(together[row], alone[0])


def test_same_input_gives_the_same_bits():
    inputs, upstream = case((3, 300, 20, 9), torch.float32), torch.ones(3, 300, 20, device=DEVICE)
    for one, other in zip(*(run(inputs, upstream, impl="triton") for _ in range(2)), strict=True):
        assert torch.equal(one, other)

"""Column transforms in Triton, as fnet and spectral use them: interpreted, or for real on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from flashmix import explain, ops
from flashmix.errors import ImplementationError
from flashmix.ops._triton.availability import DTYPES, INTERPRETED
from flashmix.ops._triton.columns import launch, plan
from flashmix.ops._triton.columns.plan import Digits
from flashmix.ops.fnet.triton import passes
from flashmix.ops.fnet.triton.columns import fnet as fnet_columns
from flashmix.ops.spectral.triton import columns as spectral_columns

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_GPU = DEVICE == "cuda"
pytestmark = pytest.mark.skipif(
    not ON_GPU and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1"
)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def large(*shapes):
    """Shapes for a GPU alone, left aside under compute-sanitizer."""
    return [pytest.param(shape, marks=pytest.mark.slow) for shape in shapes if ON_GPU]


FNET = [(2, 2, 1), (1, 6, 2), (1, 12, 5), (1, 128, 12)]
FNET += large((2, 4096, 768), (1, 16384, 768), (1, 131072, 768), (8, 512, 256))
SPECTRAL = [(1, 1, 3, 2), (2, 6, 3, 4), (1, 7, 4, 2), (1, 32, 4, 20)]
SPECTRAL += large((4, 4096, 768, 2049), (2, 2047, 256, 1024), (1, 131072, 64, 65537))
THREE_DIGITS = Digits(4, 3, 2)


def relative(got, want):
    want = want.detach()
    return float((got.detach().double() - want).norm() / want.norm().clamp(min=1e-30))


def budget(want, dtype):
    """What an op may lose: 2.5 times rounding the exact result, or its worst where few are."""
    if dtype == torch.float32:
        return 1e-6
    least = torch.finfo(dtype).eps / (4 if want.numel() > 16 else 2)
    return 2.5 * max(relative(want.to(dtype), want), least)


def randn(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def exact(x, norm="ortho"):
    return torch.fft.fftn(x.double(), dim=(1, 2), norm=norm).real


def ragged(batch, seq_len):
    mask = torch.ones(batch, seq_len, dtype=torch.bool, device=DEVICE)
    mask[0, seq_len - 1 :], mask[1, :4] = False, False
    return mask


@pytest.mark.parametrize("shape", FNET, ids=str)
@each_dtype
def test_fnet_by_columns_is_exact_to_the_budget_of_its_dtype(shape, dtype):
    x = randn(*shape, dtype=dtype)
    got = ops.fnet(x, norm="ortho", impl="triton_columns")
    assert relative(got, exact(x)) <= budget(exact(x), dtype)


@each_dtype
def test_fnet_in_three_digits(dtype):
    x = randn(1, THREE_DIGITS.seq_len, 17, dtype=dtype)
    got = passes.mix(x, THREE_DIGITS, "ortho")
    assert relative(got, exact(x)) <= budget(exact(x), dtype)


@pytest.mark.slow
@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_a_million_tokens():
    x = randn(1, 1 << 20, 768, dtype=torch.bfloat16)
    want = torch.fft.rfft2(x.float(), dim=(1, 2), norm="ortho").real
    got = ops.fnet(x, norm="ortho", impl="triton_columns")[:, :, : want.shape[2]].float()
    assert float((got - want).norm() / want.norm()) <= 2.5 * torch.finfo(torch.bfloat16).eps / 4


def test_the_gradient_is_the_adjoint_under_padding():
    """True lengths are 7 (odd, by the FFT) and 4 (by columns)."""
    x, upstream, mask = randn(2, 8, 6).requires_grad_(), randn(2, 8, 6) + 1, ragged(2, 8)
    y = ops.fnet(x, mask=mask, impl="triton_columns")
    (grad,) = torch.autograd.grad(y, x, upstream)
    wide = x.detach().double().requires_grad_()
    want = ops.fnet(wide, mask=mask, impl="reference")
    (want_grad,) = torch.autograd.grad(want, wide, upstream.double())
    assert relative(y, want) <= 1e-6
    assert relative(grad, want_grad) <= 1e-6


def values_and_gradients(inputs, upstream, **options):
    inputs = [one.detach().requires_grad_() for one in inputs]
    y = ops.spectral(*inputs, **options)
    return y, *torch.autograd.grad(y, inputs, upstream.to(y.dtype))


def assert_spectral(shape, dtype, unitary, mask=None):
    batch, seq_len, dim, modes = shape
    inputs = [randn(batch, seq_len, dim, dtype=dtype), randn(modes, dim, 2), randn(dim)]
    upstream = randn(batch, seq_len, dim + 1, dtype=dtype)[..., 1:]
    options = {"unitary": unitary, "mask": mask}
    got = values_and_gradients(inputs, upstream, impl="triton_columns", **options)
    wide = [one.double() for one in inputs]
    want = values_and_gradients(wide, upstream, impl="reference", **options)
    assert got[0].dtype == dtype
    for one, other in zip(got, want, strict=True):
        assert relative(one, other) <= budget(other, dtype)


@pytest.mark.parametrize("shape", SPECTRAL, ids=str)
@pytest.mark.parametrize("unitary", [False, True])
@each_dtype
def test_values_and_gradients_of_all_modes_match_float64(shape, dtype, unitary):
    assert_spectral(shape, dtype, unitary)


def test_the_filter_in_three_digits(monkeypatch):
    monkeypatch.setattr(launch, "tuned", lambda *shape: (THREE_DIGITS, None))
    assert_spectral((1, THREE_DIGITS.seq_len, 3, 100), DTYPES[-1], unitary=False)


def test_the_filter_under_padding():
    assert_spectral((2, 8, 3, 3), torch.float32, unitary=False, mask=ragged(2, 8))


def test_sums_over_the_batch_may_be_in_parts(monkeypatch):
    """On a GPU with work for more processors than lines, several programs share a line's sum."""
    monkeypatch.setattr(launch, "processors", lambda device: 16)
    assert_spectral((3, 4, 3, 3), torch.float32, unitary=False)


def test_strided_and_empty_inputs():
    x, weight = randn(2, 5, 12).transpose(1, 2), randn(7, 5, 2)
    want = ops.spectral(x.double(), weight.double(), impl="reference")
    assert relative(ops.spectral(x, weight, impl="triton_columns"), want) <= 1e-6
    assert relative(ops.fnet(x, norm="ortho", impl="triton_columns"), exact(x)) <= 1e-6
    assert ops.spectral(x[:0], weight, impl="triton_columns").shape == (0, 12, 5)
    assert ops.fnet(x[:0], impl="triton_columns").shape == (0, 12, 5)


def test_same_input_gives_the_same_bits_whatever_plans_are_cached():
    """Matrices are kept by length, dtype and device: others in between disturb none."""

    def run(seq_len, dtype):
        x = randn(2, seq_len, 5, dtype=dtype)
        inputs = [x, randn(4, 5, 2), randn(5)]
        filtered = values_and_gradients(inputs, x, impl="triton_columns")
        mixed = [ops.fnet(x, impl=impl) for impl in ("triton", "triton_columns")]
        return *filtered, *mixed

    kept = (plan.matrices, plan.digits, passes.width_matrices, passes.tuned, launch.tuned)
    for cache in kept:
        cache.cache_clear()
    fresh = run(8, torch.float32)
    for seq_len, dtype in ((8, DTYPES[1]), (6, torch.float32)):
        run(seq_len, dtype)
    for before, after in zip(fresh, run(8, torch.float32), strict=True):
        assert torch.equal(before, after)


def test_refusals_name_the_reason_and_the_road_that_is_left():
    x = randn(1, 7, 5)
    with pytest.raises(ImplementationError, match="N = 7"):
        ops.fnet(x, impl="triton_columns")
    with pytest.raises(ImplementationError, match="D = 131"):
        ops.fnet(randn(1, 8, 131), impl="triton_columns")
    with pytest.raises(ImplementationError, match="no causal filter"):
        ops.spectral(x, randn(3, 5, 2), causal=True, impl="triton_columns")


@pytest.mark.usefixtures("unmeasured")
def test_explain_tells_the_road():
    told = explain("fnet", (2, 4096, 768), torch.float16, DEVICE).alternatives
    assert "(4096 = 64 * 64)" in told["triton_columns"]
    told = explain("fnet", (2, 4099, 768), torch.float16, DEVICE).alternatives
    assert "N = 4099" in told["triton_columns"]
    told = explain("spectral", (2, 4099, 768), torch.float16, DEVICE, modes=2050).alternatives
    assert "impl='triton_columns' takes any" in told["triton"]
    assert "within 9216 = 72 * 128" in told["triton_columns"]


def test_fnet_registration_holds():
    torch.library.opcheck(fnet_columns.op, (randn(1, 4, 2).requires_grad_(), None, "ortho"))


def test_spectral_registration_holds():
    inputs = [one.requires_grad_() for one in (randn(1, 4, 2), randn(2, 2, 2), randn(2))]
    torch.library.opcheck(spectral_columns.spectral.op, (*inputs, None, False))


def test_captured_in_one_graph():
    x, weight = randn(1, 4, 2), randn(3, 2, 2)

    def run(x, weight):
        y = ops.spectral(x, weight, impl="triton_columns")
        return ops.fnet(y, norm="ortho", impl="triton_columns")

    compiled = torch.compile(run, fullgraph=True, backend="inductor" if ON_GPU else "aot_eager")
    assert relative(compiled(x, weight), run(x, weight).double()) <= 1e-6


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_replays_in_a_cuda_graph_and_never_waits_for_the_host():
    x, weight = randn(2, 512, 256).requires_grad_(), randn(257, 256, 2).requires_grad_()

    def step():
        y = ops.spectral(x, weight, impl="triton_columns")
        z = ops.fnet(y, norm="ortho", impl="triton_columns")
        return z, *torch.autograd.grad(z, (x, weight), z.detach())

    step()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            got = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        x.copy_(randn(2, 512, 257)[..., 1:])
    graph.replay()
    for one, other in zip(got, step(), strict=True):
        assert torch.equal(one, other)

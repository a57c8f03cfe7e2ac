"""The Triton FNet kernels: interpreted on the CPU (TRITON_INTERPRET=1), or for real on a GPU."""

import itertools

import pytest
import torch

pytest.importorskip("triton")

from flashmix import ops
from flashmix.errors import ImplementationError
from flashmix.ops._triton.availability import DTYPES, INTERPRETED
from flashmix.ops.fnet.plan import plan, plans
from flashmix.ops.fnet.triton import fnet as fnet_triton
from flashmix.ops.fnet.triton import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1"
)

SHAPES = [
    (2, 2, 1),
    (2, 4, 3),
    (1, 24, 12),
    (2, 64, 32),
    (3, 96, 48),
    (1, 130, 17),
    (1, 1024, 48),
    (1, 64 * 65, 16),
    (1, 64 * 72, 20),
]
GPU_SHAPES = [(2, 4096, 768), (1, 16384, 768), (2, 4096, 256), (2, 2048, 1024), (8, 512, 256)]
LARGE = [pytest.param(shape, marks=pytest.mark.slow) for shape in GPU_SHAPES]
SHAPES += [] if DEVICE == "cpu" else LARGE
# The interpreter, which is slow, takes half types at the shorter lengths alone.
CASES = [
    (dtype, shape)
    for dtype in DTYPES
    for shape in SHAPES
    if DEVICE == "cuda" or dtype == torch.float32 or shape[1] < 1024
]


def relative(got, want):
    return float((got.double() - want).detach().norm() / want.detach().norm())


def exact(x, norm="backward"):
    return torch.fft.fftn(x.double(), dim=(1, 2), norm=norm).real


@pytest.fixture
def poison(monkeypatch):
    """Fresh memory holds NaN, so that an element nobody wrote shows."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def filled(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: filled(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda s, *a, **k: filled(new_empty(s, *a, **k)))


@pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
@pytest.mark.usefixtures("poison")
def test_forward_is_exact_to_the_budget_of_its_dtype(shape, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape, device=DEVICE).to(dtype)
    if plan(shape[1], shape[2], dtype) is None:
        with pytest.raises(ImplementationError, match=r"'triton' (takes|has)"):
            ops.fnet(x, impl="triton")
        return
    want = exact(x, "ortho")
    error = relative(ops.fnet(x, norm="ortho", impl="triton"), want)
    budget = 1e-6 if dtype == torch.float32 else 2.5 * relative(want.to(dtype), want)
    assert error <= max(budget, 2.5 * torch.finfo(dtype).eps / 4)


@pytest.mark.parametrize("shape", [(2, 24, 12), (1, 64 * 66, 16)], ids=str)
def test_unnormalised_sums_are_the_papers(shape):
    x = torch.randn(shape, device=DEVICE)
    assert relative(ops.fnet(x, impl="triton"), exact(x)) <= 1e-6


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_the_adjoint(masked):
    x = torch.randn(3, 24, 12, device=DEVICE, requires_grad=True)
    upstream = torch.randn_like(x)
    mask = None
    if masked:
        mask = torch.ones(3, 24, dtype=torch.bool, device=DEVICE)
        mask[0, 20:], mask[1, :5], mask[2, 7] = False, False, False
    y = ops.fnet(x, mask=mask, impl="triton")
    (grad,) = torch.autograd.grad(y, x, upstream)
    wide = x.detach().double().requires_grad_()
    want = ops.fnet(wide, mask=mask, impl="reference")
    (want_grad,) = torch.autograd.grad(want, wide, upstream.double())
    assert relative(y, want) <= 1e-6
    assert relative(grad, want_grad) <= 1e-6


def each_digit_once(found):
    """As few of the plans as hold every first digit of both axes: they are cut independently."""
    tokens, width = (sorted({getattr(one, name) for one in found}) for name in ("n1", "d1"))
    wanted = set(zip(tokens, itertools.cycle(width)))
    assert len(tokens) >= len(width)
    return [one for one in found if (one.n1, one.d1) in wanted]


@pytest.mark.parametrize("shape", [(1, 96, 48), (1, 60, 20), (1, 516, 2)], ids=str)
@pytest.mark.usefixtures("poison")
def test_every_way_to_cut_a_shape_is_exact(shape):
    x = torch.randn(shape, device=DEVICE)
    want = exact(x, "ortho")
    found = plans(*shape[1:], x.dtype)
    assert len({one.n1 for one in found}) > 2
    assert len({one.d1 for one in found}) > 1
    if DEVICE == "cpu":
        found = each_digit_once(found)
    how = launch.Config(head_warps=8, tail_c=16)
    for one in found:
        assert relative(launch.mix(x, one, "ortho", how), want) <= 1e-6


@pytest.mark.parametrize(("n1", "rows"), [(2, 4), (8, 4), (16, 8)])
def test_up_to_four_planes_make_a_product_of_eight_rows(n1, rows):
    x = torch.randn(2, 96, 48, device=DEVICE)
    one = next(one for one in plans(96, 48, x.dtype) if one.n1 == n1)
    assert one.half_padded == rows
    how = launch.Config(head_warps=8, tail_c=16)
    assert relative(launch.mix(x, one, "ortho", how), exact(x, "ortho")) <= 1e-6


@pytest.mark.parametrize("seq_len", [12 * 34, 12 * 37])
@pytest.mark.parametrize("columns", [16, 64])
@pytest.mark.usefixtures("poison")
def test_blocks_of_pairs_and_columns_meet(seq_len, columns):
    x = torch.randn(1, seq_len, 80, device=DEVICE).half()
    one = next(one for one in plans(seq_len, 80, x.dtype) if one.n1 == 12)
    how = launch.Config(tail_c=columns, tail_pairs=16, tail_terms=16, tail_stages=2)
    assert relative(launch.mix(x, one, "ortho", how), exact(x, "ortho")) <= 6e-4


def test_strided_and_empty_inputs():
    x = torch.randn(2, 12, 24, device=DEVICE).transpose(1, 2)
    assert relative(ops.fnet(x, impl="triton"), exact(x)) <= 1e-6
    assert ops.fnet(x[:0], impl="triton").shape == (0, 24, 12)


def test_more_sequences_than_a_grid_holds(monkeypatch):
    monkeypatch.setattr("flashmix.ops._triton.launch.MOST_SEQUENCES", 2)
    x = torch.randn(5, 24, 12, device=DEVICE)
    assert relative(ops.fnet(x, impl="triton"), exact(x)) <= 1e-6


def test_same_input_gives_the_same_bits():
    x = torch.randn(2, 64, 32, device=DEVICE)
    assert torch.equal(ops.fnet(x, impl="triton"), ops.fnet(x, impl="triton"))


def test_half_precision_sums_do_not_overflow_inside():
    """The even part of this input vanishes, and with it the result, though its sums are large."""
    x = torch.full((1, 64, 32), 300.0, device=DEVICE, dtype=torch.float16)
    x[:, 33:] *= -1
    x[:, [0, 32]] = 0
    x[:, 1:32] = x[:, 1:32].clone()
    want = exact(x, "ortho")
    got = ops.fnet(x, norm="ortho", impl="triton")
    assert torch.isfinite(got).all()
    assert float((got.double() - want).abs().max()) <= 0.02 * 300 * 8


@pytest.mark.parametrize("length", [7, 2 * 1031])
def test_a_length_without_plan_is_refused_by_name_and_auto_runs_another(length):
    x = torch.randn(1, length, 12, device=DEVICE)
    with pytest.raises(ImplementationError, match=rf"N = {length}"):
        ops.fnet(x, impl="triton")
    assert relative(ops.fnet(x), exact(x)) <= 1e-6


def test_registration_holds():
    x = torch.randn(2, 24, 12, device=DEVICE, requires_grad=True)
    torch.library.opcheck(fnet_triton.op, (x, None, "ortho"))


def test_compiles_without_graph_breaks():
    x = torch.randn(2, 24, 12, device=DEVICE)
    run = torch.compile(lambda x: ops.fnet(x, impl="triton") * 2, fullgraph=True)
    assert relative(run(x), 2 * exact(x)) <= 1e-6


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_replays_in_a_cuda_graph_and_never_waits_for_the_host():
    x = torch.randn(2, 512, 256, device=DEVICE, requires_grad=True)

    def step():
        y = ops.fnet(x, impl="triton")
        return y, *torch.autograd.grad(y, x, y.detach())

    step()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            y, grad = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert relative(y, exact(x)) <= 1e-6
    assert relative(grad, exact(y)) <= 1e-6

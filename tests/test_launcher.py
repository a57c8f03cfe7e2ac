"""Calls that repeat a case run from a plan, without Python, and give what Python gives."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from flashmix import ops
from flashmix.cli.main import main
from flashmix.ops._launcher import library, replay
from flashmix.ops._launcher.recording import constant, current
from flashmix.ops._library import kernel_op
from helpers import OPS, each_impl, randn, skip_unless_runs
from layouts import TRANSPOSED

pytestmark = pytest.mark.skipif(
    library.loaded() is not None, reason=f"there is no launcher here: {library.loaded()}"
)

MASKS = {
    "no mask": None,
    "padded": torch.arange(13) < torch.tensor([13, 5, 0])[:, None],
}


def bits(values: list[Tensor]) -> list[list[float]]:
    return [x.detach().flatten().tolist() for x in values]


def call(case, impl, seed, mask, lay=lambda x: x, dtype=torch.float32, device="cpu"):
    """Output and gradients, from inputs that ``seed`` draws anew."""
    tokens, parameters = case.inputs(3, 13, dtype=dtype, device=device)
    leaves = [
        lay(randn(*x.shape, seed=seed + i, dtype=dtype, device=device)).requires_grad_()
        for i, x in enumerate([*tokens, *parameters])
    ]
    mask = None if mask is None else mask.to(device)
    y = case.run(*leaves, mask=mask, impl=impl)
    upstream = lay(randn(*y.shape, seed=seed + 9, dtype=dtype, device=device))
    return [y, *torch.autograd.grad(y, leaves, upstream)]


def planned() -> dict[str, tuple[int, int]]:
    """How many plans each op has."""
    return {name: replay.plans(name) for name, _ in replay.taken()}


@each_impl()
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("lay", [lambda x: x, TRANSPOSED.of], ids=["contiguous", "transposed"])
def test_a_plan_gives_the_bits_of_the_python_it_was_recorded_from(case, impl, device, mask, lay):
    skip_unless_runs(case.operator, impl, torch.float32, device)
    replay.forget()
    want = call(case, impl, 100, MASKS[mask], lay, device=device)
    for seed in (0, 200, 300):  # in Python, recorded, and by the plan
        call(case, impl, seed, MASKS[mask], lay, device=device)
    got = call(case, impl, 100, MASKS[mask], lay, device=device)
    assert bits(got) == bits(want)
    if impl == "cpu":
        assert any(forward for forward, _ in planned().values())


@pytest.mark.parametrize("case", [one for one in OPS if one.name in ("fnet", "local", "spectral")])
def test_native_kernels_have_plans_of_both_directions(case):
    replay.forget()
    for seed in range(4):
        call(case, "cpu", seed, None)
    name = {"local": "local_attention_cpu"}.get(case.name, f"{case.name}_cpu")
    assert replay.plans(name) == (1, 1)


def test_another_case_never_runs_by_a_plan_that_is_not_its_own():
    replay.forget()
    for n in (7, 8, 8, 8, 7, 9, 9, 9, 7, 7):
        for x in (randn(2, n, 6), randn(2, n, 6).float(), randn(2, 6, n).transpose(1, 2)):
            for norm in ("backward", "ortho"):
                mask = torch.arange(n) < torch.tensor([[n], [n - 2]])
                for padded in (None, mask):
                    y = ops.fnet(x, mask=padded, norm=norm, impl="cpu")
                    want = ops.fnet(x.double(), mask=padded, norm=norm, impl="reference")
                    torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-4)


def test_one_tensor_given_twice_is_not_taken_for_one_argument():
    replay.forget()
    q, k, v = (randn(1, 2, 9, 4, seed=i) for i in range(3))
    for _ in range(3):
        ops.local_attention(q, q, q, window=4, impl="cpu")
    got = ops.local_attention(q, k, v, window=4, impl="cpu")
    want = ops.local_attention(q, k, v, window=4, impl="reference")
    torch.testing.assert_close(got, want)


def test_slices_of_one_buffer_are_told_apart():
    replay.forget()
    for seed in range(4):
        q, k, v = randn(1, 9, 3, 2, 4, seed=seed).unbind(2)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        got = ops.local_attention(q, k, v, window=4, impl="cpu")
        torch.testing.assert_close(got, ops.local_attention(q, k, v, window=4, impl="reference"))


def test_what_reads_contents_stays_in_python():
    replay.forget()
    for lengths in ((3, 4), (4, 3), (1, 6), (7, 0), (2, 5)):
        offsets = torch.tensor([0, lengths[0], 7], dtype=torch.int32)
        x = randn(7, 6, seed=lengths[0])
        got = ops.fnet(x, cu_seqlens=offsets, impl="cpu")
        want = ops.fnet(x, cu_seqlens=offsets, impl="reference")
        torch.testing.assert_close(got, want)
    assert replay.plans("fnet_cpu_packed") == (0, 0)


def by_plan(requires=(True, True, True)):
    """q, k, v and the output of a case that runs by its plan."""
    for seed in range(5):
        qkv = [randn(1, 2, 9, 4, seed=seed + i) for i in range(3)]
        leaves = [x.requires_grad_(need) for x, need in zip(qkv, requires, strict=True)]
        y = ops.local_attention(*leaves, window=4, impl="cpu")
        if seed < 4:
            y.sum().backward()
    return leaves, y


def test_autograd_finds_what_was_changed_in_place():
    (q, _, _), y = by_plan()
    with torch.no_grad():
        q.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_graph_runs_backward_twice_only_where_it_is_retained():
    leaves, y = by_plan()
    first = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(y.sum(), leaves)
    assert bits(list(first)) == bits(list(second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), leaves)


def test_second_derivatives_are_those_of_the_formula():
    leaves, y = by_plan()
    (grad,) = torch.autograd.grad(y.square().sum(), leaves[:1], create_graph=True)
    got = torch.autograd.grad(grad.square().sum(), leaves)
    y = ops.local_attention(*leaves, window=4, impl="reference")
    (grad,) = torch.autograd.grad(y.square().sum(), leaves[:1], create_graph=True)
    want = torch.autograd.grad(grad.square().sum(), leaves)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_asks_for_a_gradient_gets_one():
    (q, k, v), y = by_plan((True, False, True))
    y.sum().backward()
    assert q.grad is not None and v.grad is not None
    assert k.grad is None
    with torch.no_grad():
        assert not ops.local_attention(q, k, v, window=4, impl="cpu").requires_grad


def test_saved_tensors_go_through_hooks():
    by_plan()
    seen = []

    def pack(x):
        seen.append(x.shape)
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        leaves, y = by_plan()
    assert len(seen) >= 4
    torch.autograd.grad(y.sum(), leaves)


def test_threads_that_meet_a_case_at_once_all_get_it_right():
    replay.forget()
    x = randn(2, 11, 6)
    want = ops.fnet(x, impl="reference")
    wrong = []

    def work():
        for _ in range(20):
            if not torch.allclose(ops.fnet(x, impl="cpu"), want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def copied(x: Tensor, table: Tensor) -> Tensor:
    """``table``, by a native call where one is recorded."""
    y = torch.empty_like(x)
    if (recording := current()) is not None:
        recording.called(ctypes.cast(COPY, ctypes.c_void_p).value, [table, y])
    y.copy_(table)
    return y


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_void_p))
def COPY(slots):
    ctypes.memmove(slots[1], slots[0], 12)
    return 0


def test_a_tensor_that_is_neither_new_nor_declared_constant_makes_no_plan():
    undeclared, declared = torch.full((3,), 2.0), constant(torch.full((3,), 3.0))

    def careless(x: Tensor) -> Tensor:
        return copied(x, undeclared)

    def careful(x: Tensor) -> Tensor:
        return copied(x, declared)

    ops_of = [kernel_op(f"launcher_test_{k.__name__}")(k) for k in (careless, careful)]
    for _ in range(4):
        assert [op(torch.ones(3)).tolist() for op in ops_of] == [3 * [2.0], 3 * [3.0]]
    assert replay.plans("launcher_test_careless") == (0, 0)
    assert replay.plans("launcher_test_careful") == (1, 0)


def test_random_numbers_and_contents_are_never_frozen():
    def kernel(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        y.copy_(torch.rand(x.shape))
        return y

    op = kernel_op("launcher_test_random")(kernel)
    made = [op(torch.ones(8)).tolist() for _ in range(5)]
    assert len({tuple(one) for one in made}) == 5


DRIVER = """
import ctypes, torch
from types import SimpleNamespace
from torch import Tensor
from flashmix.ops._launcher import library, replay
from flashmix.ops._launcher.recording import current
from flashmix.ops._library import kernel_op

assert library.loaded() is None
class Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("value", ctypes.c_uint32 * 16)]
class Config(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3), ("shared", ctypes.c_uint32),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint32),
    ]
launches = []
def scale(x, y, count, factor):
    floats = ctypes.c_float * count
    floats.from_address(y)[:] = [factor * one for one in floats.from_address(x)]
@ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(Config), ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)
def launch(config, function, parameters, extra):
    config = config.contents
    given = [config.attributes[i] for i in range(config.count)]
    launches.append((
        tuple(config.grid), tuple(config.block), config.shared, function,
        [(one.id, one.value[0]) for one in given],
    ))
    if function == 0xBAD:
        return 700
    x, y = (ctypes.c_void_p.from_address(parameters[i]).value for i in (0, 1))
    scale(x, y, ctypes.c_int32.from_address(parameters[2]).value,
          ctypes.c_float.from_address(parameters[3]).value)
    return 0
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
def error_string(code, text):
    text[0] = b"an illegal memory access was encountered"
    return 0
address = lambda f: ctypes.cast(f, ctypes.c_void_p).value
torch.ops.flashmix._launcher_driver([address(launch), address(error_string), 0, 0, 0, 0, 0])

def compiled(function, **more):
    meta = dict(num_warps=8, num_ctas=1, shared=4096, launch_pdl=False,
                launch_cooperative_grid=False, global_scratch_size=0, profile_scratch_size=0)
    signature = {"x": "*fp32", "y": "*fp32", "n": "i32", "factor": "fp32", "BLOCK": "constexpr"}
    return SimpleNamespace(name="scale_kernel", function=function,
                           src=SimpleNamespace(signature=signature),
                           metadata=SimpleNamespace(**{**meta, **more}))

def run(x, factor, made, grid):
    y = torch.empty_like(x)
    if (recording := current()) is not None:
        arguments = {"x": x, "y": y, "n": x.numel(), "factor": factor, "BLOCK": 4}
        recording.launched(SimpleNamespace(arg_names=list(arguments)), made, grid, arguments)
    scale(x.data_ptr(), y.data_ptr(), x.numel(), factor)
    return y

PLAIN, EARLY, BAD = compiled(0x123), compiled(0x456, launch_pdl=True, num_ctas=2), compiled(0xBAD)
@kernel_op("launcher_test_scale")
def op(x: Tensor, factor: float) -> Tensor:
    return run(x, factor, PLAIN, (5,))
@kernel_op("launcher_test_early")
def early(x: Tensor, factor: float) -> Tensor:
    return run(x, factor, EARLY, (5, 2, 3))
@kernel_op("launcher_test_bad")
def bad(x: Tensor, factor: float) -> Tensor:
    return run(x, factor, BAD, (1,))

for step in range(4):
    x = torch.arange(3.0) + step
    assert op(x, 2.5).tolist() == (2.5 * x).tolist()
    early(x, 2.5)
assert launches == 2 * [
    ((5, 1, 1), (256, 1, 1), 4096, 0x123, []),
    ((10, 2, 3), (256, 1, 1), 4096, 0x456, [(6, 1), (4, 2), (5, 1)]),
], launches
bad(x, 1.0), bad(x, 1.0)
try:
    bad(x, 1.0)
except RuntimeError as error:
    print(error)
"""


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_launch_has_the_shape_attributes_and_arguments_of_its_kernel():
    done = run_python(DRIVER)
    assert done.returncode == 0, done.stderr
    assert "launching scale_kernel failed: an illegal memory access" in done.stdout


def test_without_it_calls_run_in_python_and_doctor_says_so():
    code = (
        "import torch, flashmix; x = torch.randn(2, 5, 6);"
        "ys = [flashmix.ops.fnet(x) for _ in range(4)]; assert (ys[0] == ys[3]).all();"
        "from flashmix.cli.main import main; main(['doctor', '--no-measure'])"
    )
    done = run_python(code, FLASHMIX_LAUNCHER="off")
    assert done.returncode == 0, done.stderr
    assert "launcher  none; is turned off by FLASHMIX_LAUNCHER=off" in done.stdout
    assert "each call runs its Python" in done.stdout


def test_doctor_says_where_it_is(capsys):
    assert main(["doctor", "--no-measure"]) == 0
    assert f"launcher-torch-{torch.__version__}" in capsys.readouterr().out

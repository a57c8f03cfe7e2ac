"""Native kernels: built once or refused with a reason, the same bits for any number of threads."""

from __future__ import annotations

import importlib
import os
import platform
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from flashmix import explain, ops
from flashmix.cli import main
from flashmix.errors import ImplementationError
from flashmix.ops import _build as build
from flashmix.ops._cpu import library
from flashmix.ops.dispatch import tables
from helpers import HALF, OPS, assert_close, randn

native = pytest.mark.skipif(library.missing() is not None, reason=f"native {library.missing()}")
NATIVE = [
    case
    for case in OPS
    if "cpu" not in case.refused_by
    and any(one.name == "cpu" for one in ops.OPERATORS[case.operator].implementations)
]
each_case = pytest.mark.parametrize("case", NATIVE, ids=[case.name for case in NATIVE])


def outputs(case, n, dim, impl="cpu", dtype=torch.float32, mask=None):
    """Output and gradients."""
    tokens, parameters = case.inputs(2, n, dim, dtype=dtype)
    leaves = [x.requires_grad_() for x in (*tokens, *parameters)]
    y = case.run(*leaves, mask=mask, impl=impl)
    return [y, *torch.autograd.grad(y, leaves, randn(*y.shape, seed=9, dtype=dtype))]


@native
@each_case
def test_results_do_not_depend_on_the_number_of_threads(case):
    one = outputs(case, 150, 36)
    torch.set_num_threads(3)
    try:
        three = outputs(case, 150, 36)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@native
def test_threads_of_one_process_may_call_at_once():
    def run(case):
        return [y for n in (70, 71) for y in outputs(case, n, 16)]

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(run, NATIVE * 4))
    want = [run(case) for case in NATIVE]
    for i, one in enumerate(got):
        assert all(torch.equal(a, b) for a, b in zip(one, want[i % len(NATIVE)], strict=True))


@native
@each_case
@pytest.mark.parametrize("n", [1, 33, 64, 131, 360])
def test_sizes_around_those_of_vectors_and_blocks_equal_the_reference(case, n):
    mask = torch.rand(2, n, generator=torch.Generator().manual_seed(n)) > 0.3
    for dim in (2, 34, 128):
        for given in (None, mask):
            got, want = (
                outputs(case, n, dim, impl, torch.float64, given) for impl in ("cpu", "reference")
            )
            for one, other in zip(got, want, strict=True):
                assert_close(one, other)


# Lengths of one butterfly, of several, and of none, which are convolutions of a longer length.
LENGTHS = [1, 2, 17, 19, 23, 17 * 19, 2 * 509, 197, 257, 577, 1031, 4099, 10007]
TRANSFORMS = [case for case in NATIVE if case.operator in ("fnet", "spectral", "fourier")]


@native
@pytest.mark.parametrize("case", TRANSFORMS, ids=[case.name for case in TRANSFORMS])
def test_a_transform_of_any_length_rounds_as_float32_does(case):
    for n in LENGTHS:
        dim = 46 if n < 1000 else 4
        got, want = (
            outputs(case, n, dim, impl, dtype)
            for impl, dtype in (("cpu", torch.float32), ("reference", torch.float64))
        )
        for one, other in zip(got, want, strict=True):
            if other.norm() > 0:  # a unitary filter of one token has no gradient
                assert_close(one, other, 1e-6)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
def test_top_k_of_more_keys_than_a_chunk(dtype, causal):
    qkv = [x.requires_grad_() for x in randn(3, 1, 2, 4500, 4, dtype=dtype).unbind(0)]
    upstream = randn(1, 2, 4500, 4, seed=1, dtype=dtype)

    def run(impl):
        y = ops.topk_attention(*qkv, topk=37, causal=causal, impl=impl)
        return [y, *torch.autograd.grad(y, qkv, upstream)]

    # float32 roundings of the score may order two keys otherwise; their weights differ as little.
    budget = 1e-4 if dtype == torch.float32 else 1e-10
    for one, other in zip(run("cpu"), run("torch"), strict=True):
        assert_close(one, other, budget)


@native
def test_equal_scores_in_several_chunks_go_to_the_first_keys():
    q, k = torch.zeros(1, 1, 4500, 4), torch.randn(1, 1, 4500, 4)
    v = torch.arange(4500.0)[:, None].expand(4500, 4)[None, None]
    y = ops.topk_attention(q, k, v, topk=7, impl="cpu")
    assert_close(y, torch.full_like(y, 3.0), 1e-6)


@native
@pytest.mark.parametrize("ascending", [False, True])
def test_top_k_of_sorted_scores(ascending):
    n = 5000
    rank = torch.arange(n) if ascending else torch.arange(n).flip(0)
    q, k = torch.ones(1, 1, n, 1), (rank / n)[None, None, :, None].contiguous()
    v = rank.double()[None, None, :, None].float()
    best = torch.arange(n - 5, n).float()
    want = ((best / n).softmax(0) * best).sum()
    assert_close(ops.topk_attention(q, k, v, topk=5, impl="cpu"), want.expand(1, 1, n, 1), 1e-6)


@native
@each_case
def test_nan_at_a_real_token_is_not_hidden(case):
    tokens, parameters = case.inputs(1, 20, 8, dtype=torch.float32)
    tokens[len(tokens) // 2][..., 0, :] = float("nan")  # x, or k
    y = case.run(*tokens, *parameters, impl="cpu")
    want = case.run(*tokens, *parameters, impl="reference")
    assert torch.equal(y.isnan().any(-1), want.isnan().any(-1))


FORKED = """
import torch
from torch.utils.data import DataLoader, Dataset
from flashmix import ops

torch.set_num_threads(2)
x = torch.randn(4, 64, 32)
qkv = torch.randn(3, 1, 2, 300, 16)

class Mixed(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return ops.fnet(x[i : i + 1], impl="cpu"), ops.topk_attention(*qkv, topk=8, impl="cpu")

want = Mixed()[1]
for i, (y, z) in enumerate(DataLoader(Mixed(), num_workers=2, multiprocessing_context="fork")):
    assert i != 1 or torch.equal(y[0], want[0])
    assert torch.equal(z[0], want[1])
"""


@native
def test_forked_workers_of_a_process_that_used_threads_do_not_hang():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


OTHER_SETS = """
import sys
sys.path.insert(0, {tests!r})
import torch
from helpers import assert_close
from test_cpu import NATIVE, outputs
from flashmix.ops import _build as build
print(build.capability())
for case in NATIVE:
    for n, dim in ((70, 34), (131, 66)):
        for one, other in zip(outputs(case, n, dim), outputs(case, n, dim, "torch", torch.float64)):
            assert_close(one, other, 1e-4)
"""


@native
@pytest.mark.parametrize("instructions", ["default", "avx2"])
def test_smaller_instruction_sets_compute_the_same(instructions):
    if platform.machine() != "x86_64":
        pytest.skip("this machine has one instruction set")
    script = OTHER_SETS.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instructions, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=250, env=environment)


@pytest.mark.parametrize("dtype", HALF)
@native
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    q, k, v = randn(3, 2, 2, 80, 16, dtype=dtype)
    for run in (
        lambda *x: ops.topk_attention(*x, topk=5, impl="cpu"),
        lambda *x: ops.local_attention(*x, window=9, impl="cpu"),
    ):
        assert torch.equal(run(q, k, v), run(q.float(), k.float(), v.float()).to(dtype))


@pytest.mark.parametrize(
    ("amx", "gradient", "window", "impl"),
    [
        (True, False, 16, "torch"),
        (True, True, 16, "cpu"),
        (True, True, 99, "torch"),
        (False, False, 16, "cpu"),
        (False, True, 99, "cpu"),
    ],
)
@native
def test_auto_leaves_local_attention_in_bfloat16_to_processors_with_amx_but_to_train_short_windows(
    amx, gradient, window, impl, monkeypatch
):
    api = importlib.import_module("flashmix.ops.local_attention.api")
    monkeypatch.setattr(api, "_processor", lambda: {"amx_bf16": amx})
    tables.forget()
    options = {"direction": "training" if gradient else "forward", "window": window}
    decision = explain("local_attention", (1, 2, 99, 8), torch.bfloat16, **options)
    tables.forget()
    assert decision.impl == impl
    assert impl == "cpu" or "AMX" in decision.alternatives["cpu"]


@pytest.fixture
def unloaded(monkeypatch, tmp_path):
    """As in a new process whose cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library._loaded.cache_clear()
    yield tmp_path / "flashmix"
    library._loaded.cache_clear()


def fake_compiler(folder, script):
    """A compiler that is a shell script; its last argument is the output."""
    path = folder / "cxx"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_without_a_compiler_auto_runs_torch_and_says_why(unloaded, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(unloaded))
    told = explain("fnet", (2, 8, 4))
    assert told.impl == "torch"
    assert "C++ compiler" in told.alternatives["cpu"]
    assert ops.fnet(torch.zeros(1, 4, 4)).shape == (1, 4, 4)
    with pytest.raises(ImplementationError, match="needs a C\\+\\+ compiler"):
        ops.fnet(torch.zeros(1, 4, 4), impl="cpu")


def test_a_compiler_that_fails_is_named_with_its_first_error(unloaded, monkeypatch):
    monkeypatch.setenv(
        "CXX", fake_compiler(unloaded.parent, "echo x.cpp:1: error: bad >&2; exit 3")
    )
    told = explain("topk_attention", (1, 1, 8, 4))
    assert told.impl == "torch"
    assert "exited with 3: x.cpp:1: error: bad" in told.alternatives["cpu"]
    assert not list(unloaded.glob("kernels*")) + list(unloaded.glob("build-*"))


def test_a_cache_that_cannot_be_written_is_named(unloaded, monkeypatch):
    unloaded.write_text("a file where the folder should be")
    monkeypatch.setenv("CXX", "c++")
    assert "XDG_CACHE_HOME" in (library.missing() or "")


def test_a_build_says_so_once_on_the_command_line_and_in_the_log(unloaded, monkeypatch, capsys):
    monkeypatch.setenv("CXX", fake_compiler(unloaded.parent, "exit 1"))
    assert main(["doctor", "--no-measure"]) == 0
    assert capsys.readouterr().err.count("flashmix: compiling the native CPU kernels") == 1


PROCESS = """
from flashmix.ops import _build as build
print(build.build())
"""


def test_processes_that_build_at_once_compile_once(unloaded, monkeypatch):
    count = unloaded.parent / "count"
    script = f'echo x >> {count}; sleep 0.5; for last; do :; done; echo built > "$last"'
    monkeypatch.setenv("CXX", fake_compiler(unloaded.parent, script))
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {one.communicate(timeout=120)[0].strip() for one in started}
    assert [Path(path).read_text() for path in paths] == ["built\n"]
    assert count.read_text() == "x\n"


def test_builders_at_once_compile_once(unloaded, monkeypatch):
    count = unloaded.parent / "count"
    script = f'echo x >> {count}; sleep 0.2; for last; do :; done; echo built > "$last"'
    monkeypatch.setenv("CXX", fake_compiler(unloaded.parent, script))
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: build.build(), range(4)))
    assert [path.read_text() for path in paths] == ["built\n"]
    assert count.read_text() == "x\n"

"""Fixtures of the whole suite: devices, poisoned memory, small blocks, deterministic Hypothesis."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from flashmix.ops import OPERATORS
from flashmix.ops._cpu import library
from flashmix.ops._launcher import replay
from flashmix.ops._triton.availability import INTERPRETED
from flashmix.ops.block_topk_attention import blocks
from flashmix.ops.block_topk_attention import torch_impl as block_topk
from flashmix.ops.dispatch import costs, tables
from flashmix.ops.local_attention import torch_impl as local
from flashmix.ops.spectral import causal_conv
from flashmix.ops.topk_attention import torch_impl as topk
from helpers import DEVICES

ON_GPU = torch.cuda.is_available()

settings.register_profile(
    "flashmix",
    derandomize=True,
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("flashmix")
# What this machine was tuned to must not change what the tests run.
os.environ["FLASHMIX_DISPATCH"] = "/nonexistent/dispatch.json"
torch.set_num_threads(1)
if INTERPRETED:
    import interpreter

    interpreter.speed_up()


def require_native():
    """With FLASHMIX_REQUIRE_NATIVE set, native kernels that are missing fail the run, not skip."""
    if os.environ.get("FLASHMIX_REQUIRE_NATIVE") and (reason := library.missing()):
        raise pytest.UsageError(f"FLASHMIX_REQUIRE_NATIVE is set, and native: {reason}")


def pytest_configure():
    require_native()


@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory():
    """Fresh memory holds NaN, so that an output which nobody wrote cannot look right."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def returned_memory():
    """Give a GPU's memory back after each test, for the processes that share the GPU."""
    yield
    if ON_GPU:
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def fresh_decisions():
    """No decision of dispatch outlives the test that it was made in, which may have patched it."""
    yield
    for operator in OPERATORS.values():
        operator._decisions.clear()


@pytest.fixture
def unmeasured(monkeypatch):
    """A machine of which no measurement is known, whichever the tests run on."""
    tables.forget()
    monkeypatch.setattr(costs, "device_name", lambda device: None)
    yield
    tables.forget()


@pytest.fixture(autouse=True)
def no_plans_of_other_tests():
    """Plans are recorded with the block sizes that a test may have changed."""
    replay.forget()


@pytest.fixture(scope="module")
def small_blocks():
    """Blocks and chunks so small that a few tokens take every road through the tiled code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 4)
        patch.setattr(block_topk, "BLOCK", 4)
        patch.setattr(local, "MIN_BLOCK", 4)
        patch.setattr(causal_conv, "BASE", 4)
        for device in DEVICES:
            patch.setitem(topk.CHUNK, device, 32)
        yield


@pytest.fixture(scope="session")
def ranks_pool():
    """Four processes in one gloo group; see ``parallel_pool``."""
    from parallel_pool import Pool

    pool = Pool(4)
    yield pool
    pool.close()


@pytest.fixture
def unpoisoned_memory():
    """PyTorch's usual algorithms, not their deterministic stand-ins."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)

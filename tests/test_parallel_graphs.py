"""Sharded modules in CUDA graphs: what a capture takes for agreed, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashmix.parallel.comm import graphs as _graphs
from graph_ranks import CASES
from parallel_pool import Failure
from test_parallel import SHARDABLE

GPUS = 2
TESTS = Path(__file__).parent


@pytest.mark.parametrize("text", SHARDABLE)
def test_a_capture_asks_nobody_and_takes_what_was_agreed_on(ranks_pool, text):
    assert ranks_pool.run("parallel_graphs.captured", text, [(5, 3, 4, 6)]) == [True] * 4


def test_a_classifier_is_captured_too(ranks_pool):
    answers = ranks_pool.run(
        "parallel_graphs.captured", "fnet,attention", [(5, 3, 4, 6)], of_text=True
    )
    assert answers == [True] * 4


def test_the_last_of_the_calls_with_the_same_own_tokens_counts(ranks_pool):
    layouts = [(5, 3), (5, 7), (4, 7), (5, 6)]
    assert ranks_pool.run("parallel_graphs.captured", "spectral(modes=2)", layouts) == [True] * 4


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("never called", "ImplementationError", "call it once on every rank with the same shapes"),
        ("another shape", "ImplementationError", "call it once on every rank with the same shapes"),
        ("a gradient", "ImplementationError", "requires_grad, in the same gradient mode"),
        ("a mask", "ImplementationError", "with a mask, on this rank or another"),
        ("a mask elsewhere", "ImplementationError", "with a mask, on this rank or another"),
        ("a width", "ArgumentError", "width D = 8"),
    ],
)
def test_what_cannot_be_captured_is_refused_on_every_rank(ranks_pool, what, kind, words):
    for answer in ranks_pool.ask("parallel_graphs.captured_wrongly", what):
        assert isinstance(answer, Failure), answer
        assert answer.kind == kind
        assert words in answer.message


def test_what_a_graph_was_captured_with_is_never_let_go_of(monkeypatch):
    @_graphs.cached(maxsize=2)
    def made(length):
        return torch.zeros(length)

    monkeypatch.setattr(_graphs, "capturing", lambda: True)
    kept = made(1)
    monkeypatch.setattr(_graphs, "capturing", lambda: False)
    recent = made(2)
    for length in (3, 4):
        made(length)
    assert made(1) is kept
    assert made(2) is not recent


def test_nothing_is_captured_without_a_gpu():
    if not torch.cuda.is_initialized():
        assert not _graphs.capturing()


def over_gpus(*script):
    """A script's process, by torchrun on each GPU."""
    if torch.cuda.device_count() < GPUS:
        pytest.skip(f"needs {GPUS} GPUs, this machine has {torch.cuda.device_count()}")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(GPUS)]
    return subprocess.run(
        [sys.executable, *launch, *map(str, script)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """What two GPUs found of every case, by its name."""
    out = tmp_path_factory.mktemp("graphs") / "found.json"
    done = over_gpus(TESTS / "graph_ranks.py", "--out", out)
    assert out.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_replay_over_gpus_gives_what_a_call_does(replayed, name):
    """With new inputs and new weights, gradients of both included."""
    assert replayed[name]["error"] is None
    assert replayed[name]["worst"] <= replayed[name]["budget"]


def test_a_mask_is_refused_in_a_real_capture_and_calls_go_on(replayed):
    assert "with a mask, on this rank or another" in replayed["a mask"]["error"]


@pytest.mark.slow
def test_the_example_of_the_docs_learns(tmp_path):
    text = (TESTS.parent / "docs" / "guides" / "cuda-graphs.md").read_text()
    (example,) = re.findall(r"```python\n(# torchrun [^\n]*graphs\.py\n.*?)```", text, re.DOTALL)
    script = tmp_path / "graphs.py"
    script.write_text(example)
    done = over_gpus(script)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(loss) for loss in re.findall(r"rank 0, step \d+: (\S+)", done.stdout)]
    assert losses[-1] < losses[0]

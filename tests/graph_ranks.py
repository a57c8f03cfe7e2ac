"""What ranks with a GPU each find when they replay sharded models as CUDA graphs.

Usage: torchrun --nproc-per-node 2 tests/graph_ranks.py [--out FILE]

Every case is called, captured (forward, and gradients of inputs and parameters), given new inputs
and new weights in place, and replayed; the result is compared with that of a call. The first rank
prints a table, and writes FILE as JSON. Exits with 1 where a case failed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flashmix import create_mixer, parallel
from flashmix.errors import ImplementationError
from flashmix.mixers import parse_mixer
from flashmix.models import Encoder, SequenceClassifier, TextClassifier

DEVICE = "cuda"
DIM, HEADS, BATCH, VOCABULARY = 64, 4, 2, 50
BUDGETS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Sums in another order, of the kernels that add in any; stale inputs are off by about 1."""


@dataclass(frozen=True)
class BenchmarkCase:
    """A model, and what it is given: tokens [B, N, D], or ids [B, N]."""

    make: Callable[[], torch.nn.Module]
    tokens: int = 1024
    batch: int = BATCH
    dtype: torch.dtype = torch.bfloat16
    ids: bool = False


def mixer(text: str, heads: int = HEADS, **fields: Any) -> BenchmarkCase:
    """A mixer alone."""
    return BenchmarkCase(functools.partial(parse_mixer(text).build, DIM, num_heads=heads), **fields)


LAYERS: dict[str, Any] = {"dim": DIM, "depth": 2, "num_heads": HEADS}
CASES = {
    "attention": mixer("attention"),
    "attention, ring": mixer("attention", 1, batch=1),
    "local": mixer("local(window=32)"),
    "local, by heads": mixer("local(window=32)", tokens=20),
    # PyTorch's road looks at the GPU for ties.
    "topk": mixer("topk(topk=8, impl=triton)"),
    "fourier": mixer("fourier"),
    "fnet": mixer("fnet"),
    "fnet, prime length": mixer("fnet", tokens=1009),
    "fnet, float32": mixer("fnet", dtype=torch.float32),
    "spectral": mixer("spectral(modes=16)"),
    "spectral, float32": mixer("spectral(modes=16)", dtype=torch.float32),
    "spectral, by channels": mixer("spectral(modes=400)"),
    "spectral, causal": mixer("spectral(modes=16, causal=True)"),
    "hybrid": mixer("spectral(modes=16)+local(window=32)"),
    "encoder": BenchmarkCase(
        functools.partial(Encoder, DIM, 3, "fnet,attention,spectral(modes=16)", num_heads=HEADS)
    ),
    "classifier of features": BenchmarkCase(
        functools.partial(SequenceClassifier, DIM, 2048, 3, mixers="fnet,attention", **LAYERS)
    ),
    "classifier of text": BenchmarkCase(
        functools.partial(TextClassifier, VOCABULARY, 2048, 3, mixers="attention,fnet", **LAYERS),
        ids=True,
    ),
}


def inputs(case: BenchmarkCase, mesh: DeviceMesh, seed: int) -> torch.Tensor:
    """This rank's slice, the same of the whole on every rank."""
    generator = torch.Generator().manual_seed(seed)
    own = parallel.local_slice(case.tokens, mesh)
    if case.ids:
        ids = torch.randint(VOCABULARY, (case.batch, case.tokens), generator=generator)
        return ids[:, own].to(DEVICE)
    x = torch.randn(case.batch, case.tokens, DIM, generator=generator)
    return x[:, own].to(DEVICE, case.dtype)


def replay(case: BenchmarkCase, mesh: DeviceMesh) -> float:
    """Largest relative error of a replay's output or gradient against a call's, on this rank."""
    torch.manual_seed(0)
    model = parallel.shard_sequence(case.make().to(DEVICE, case.dtype), mesh)
    x = inputs(case, mesh, 1).requires_grad_(not case.ids)
    leaves = [*([] if case.ids else [x]), *model.parameters()]

    def step() -> list[torch.Tensor]:
        y = model(x)
        upstream = torch.cos(torch.arange(y.numel(), device=y.device)).view(y.shape).to(y.dtype)
        return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    with torch.no_grad():
        x.copy_(inputs(case, mesh, 2))
        for parameter in model.parameters():
            parameter.mul_(1.25)
    graph.replay()
    want = step()
    # A replay after a call reads what the call may have written over.
    graph.replay()
    torch.cuda.synchronize()
    errors = [(a.double() - b.double()).norm() for a, b in zip(got, want, strict=True)]
    norms = [one.double().norm() for one in want]
    # Of the weights, some gradients are rounding alone: the largest is the scale of all.
    own = 1 if case.ids else 2
    scales = norms[:own] + [max(norms[own:], default=torch.ones(()))] * len(norms[own:])
    return worst([(error / scale).item() for error, scale in zip(errors, scales, strict=True)])


def worst(values: list[float]) -> float:
    """The largest, NaN where there is one."""
    return torch.tensor(values).max().item()


def masked(mesh: DeviceMesh) -> None:
    """Capture a call with a mask, then call without a graph."""
    model = parallel.shard_sequence(create_mixer("fnet", DIM).to(DEVICE), mesh)
    x = torch.randn(1, 16, DIM, device=DEVICE)
    mask = torch.ones(1, 16, dtype=torch.bool, device=DEVICE)
    model(x, mask)
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            model(x, mask)
    finally:
        model(x, mask)
        torch.cuda.synchronize()


def from_all(mine: object) -> list[Any]:
    """Every rank's word."""
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, mine)
    return told


def examine(mesh: DeviceMesh) -> dict[str, dict[str, Any]]:
    """What the ranks found of each case; an error of one ends them all, after it is printed."""
    found: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        begun, error, value = time.perf_counter(), None, float("nan")
        try:
            value = replay(case, mesh)
        except Exception as reason:
            error = f"rank {dist.get_rank()}: {type(reason).__name__}: {reason}".splitlines()[0]
        # A rank that fails alone leaves the others waiting until the group's timeout.
        told = from_all((error, value))
        found[name] = {
            "error": next((one for one, _ in told if one), None),
            "worst": worst([value for _, value in told]),
            "budget": BUDGETS[case.dtype],
            "seconds": time.perf_counter() - begun,
        }
    try:
        masked(mesh)
        found["a mask"] = {"error": None}
    except ImplementationError as reason:
        found["a mask"] = {"error": str(reason)}
    return found


def main() -> int:
    """Examine every case on this rank; the first one tells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl")
    mesh = init_device_mesh("cuda", (dist.get_world_size(),))
    found = examine(mesh)
    good = "with a mask" in (found["a mask"]["error"] or "")
    if dist.get_rank() == 0:
        if told.out:
            told.out.write_text(json.dumps(found))
        print(f"{'case':<24} {'s':>6} {'worst':>9} {'budget':>7}")
    for name, one in found.items():
        if name != "a mask":
            fits = one["error"] is None and one["worst"] <= one["budget"]
            good = good and fits
            if dist.get_rank() == 0:
                word = "" if fits else f"  FAILED {one['error'] or ''}"
                print(
                    f"{name:<24} {one['seconds']:6.2f} {one['worst']:9.1e} "
                    f"{one['budget']:7.0e}{word}"
                )
    if dist.get_rank() == 0:
        print(f"a mask: {found['a mask']['error']}")
        print("all went well" if good else "something failed; see above")
    sys.stdout.flush()
    dist.barrier()
    os._exit(0 if good else 1)


if __name__ == "__main__":
    main()

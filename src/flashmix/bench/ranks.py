"""Mixers over several ranks against one device; run it under torchrun.

    torchrun --nproc-per-node 2 -m flashmix.bench.ranks --device cuda --dtype bfloat16 \
        --mixers fnet,spectral --seq-lens 16384,131072 --dim 768

One device (the first rank alone) and all ranks together take turns, A B A B, so that drift meets
both. A time is that of a whole forward and backward pass as the caller waits for it, the slowest
rank's; memory is the peak beyond inputs and weights. Each case is a line of JSON, samples included.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flashmix import parallel
from flashmix.bench.memory import peak_mb
from flashmix.errors import ArgumentError
from flashmix.mixers import create_mixer
from flashmix.mixers.spec import split_list


def main() -> None:
    """Measure the cases of the command line."""
    arguments = _arguments()
    if "RANK" not in os.environ:
        raise SystemExit(
            "this runs on several ranks at once; start it with: "
            "torchrun --nproc-per-node 2 -m flashmix.bench.ranks"
        )
    if arguments.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    mesh = init_device_mesh(arguments.device, (int(os.environ["WORLD_SIZE"]),))
    try:
        for text in split_list(arguments.mixers):
            for seq_len in map(int, split_list(arguments.seq_lens)):
                row = _measure(text, seq_len, arguments, mesh)
                if mesh.get_rank() == 0:
                    _store(arguments.out, row)
    finally:
        dist.destroy_process_group()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Mixers over the ranks of torchrun, against one device."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--mixers", default="fnet,spectral,attention,local", metavar="M,M,...")
    parser.add_argument("--seq-lens", default="16384", metavar="N,N,...", help="of all ranks")
    parser.add_argument("--dim", type=int, default=768, help="width (default 768)")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default 1)")
    parser.add_argument("--samples", type=int, default=10, help="timed passes (default 10)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append rows to FILE (jsonl)")
    return parser.parse_args()


def _measure(
    text: str, seq_len: int, arguments: argparse.Namespace, mesh: DeviceMesh
) -> dict[str, Any]:
    """One row; what one device cannot hold has no time for it."""
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    whole = create_mixer(text, arguments.dim).to(device, dtype)
    torch.manual_seed(0)
    sharded = create_mixer(text, arguments.dim).to(device, dtype)
    parallel.shard_sequence(sharded, mesh)
    x = torch.randn(arguments.batch, seq_len, arguments.dim).to(dtype)
    own = x[:, parallel.local_slice(seq_len, mesh)].to(device)
    first = mesh.get_rank() == 0
    one = _call(whole, x.to(device)) if first else None
    together = _call(sharded, own)

    samples: dict[str, list[float]] = {"one": [], "ranks": []}
    fits = _everywhere(one is None or _fits(one), device)
    together()
    for _ in range(arguments.samples):
        if fits and one is not None:
            samples["one"].append(_milliseconds(one, device))
        dist.barrier()
        samples["ranks"].append(_slowest(_milliseconds(together, device), device))
    peaks = _slowest(peak_mb(together, device), device)
    row = {
        "mixer": text,
        "batch": arguments.batch,
        "seq_len": seq_len,
        "dim": arguments.dim,
        "dtype": arguments.dtype,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "ranks": mesh.size(),
        "ranks_ms": median(samples["ranks"]),
        "ranks_peak_mb": peaks,
        "samples_ms": samples,
    }
    if fits and one is not None:
        row["one_ms"], row["one_peak_mb"] = median(samples["one"]), peak_mb(one, device)
    dist.barrier()
    return row


def _call(mixer: nn.Module, x: Tensor) -> Callable[[], None]:
    """A forward and backward pass."""
    x.requires_grad_()
    upstream = torch.ones_like(x)

    def run() -> None:
        x.grad = None
        mixer.zero_grad()
        mixer(x).backward(upstream)

    return run


def _fits(run: Callable[[], None]) -> bool:
    try:
        run()
    except torch.OutOfMemoryError:
        return False
    return True


def _milliseconds(run: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun)


def _slowest(value: float, device: str) -> float:
    most = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most.item()


def _everywhere(value: bool, device: str) -> bool:
    return _slowest(float(not value), device) == 0


def _store(out: Path | None, row: dict[str, Any]) -> None:
    """Print the row, and append it to ``out``."""
    times = f"{row['ranks_ms']:.4g} ms and {row['ranks_peak_mb']:.4g} MB on {row['ranks']} ranks"
    if "one_ms" in row:
        times += (
            f"; {row['one_ms']:.4g} ms and {row['one_peak_mb']:.4g} MB on one: "
            f"{row['one_ms'] / row['ranks_ms']:.2f}x as fast, "
            f"{row['ranks_peak_mb'] / row['one_peak_mb']:.2f} of the memory"
        )
    else:
        times += "; one device cannot hold it"
    print(f"{row['mixer']}, N = {row['seq_len']:,}: {times}", flush=True)
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ArgumentError(f"cannot write {out}: {error}") from error


if __name__ == "__main__":
    main()

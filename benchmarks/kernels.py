"""Time the Triton kernels beside the copy floor and what users have today; write a results folder.

Usage: python benchmarks/kernels.py --out benchmarks/results/h200/kernels
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from kernel_timing import samples_ms
from torch import Tensor

from flashmix import ops

FNET = (
    (64, 4096, 768),
    (8, 16384, 768),
    (64, 4096, 256),
    (16, 2048, 1024),
    (8, 512, 256),
    (32, 512, 768),
)
SPECTRAL = ((32, 4096, 768, 128), (8, 16384, 768, 128), (8, 2048, 256, 128), (1, 131072, 768, 128))
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class Case:
    """One op at one shape: the input, the parameters, and each implementation to time."""

    op: str
    shape: tuple[int, int, int]
    dtype: str
    runs: dict[str, Callable[..., Tensor]]
    modes: int | None = None
    parameters: tuple[Tensor, ...] = ()
    exact: Callable[..., Tensor] | None = None
    directions: tuple[str, ...] = field(default=("forward", "forward+backward"))


def fft2(x: Tensor) -> Tensor:
    """FNet as it is commonly written."""
    return torch.fft.fft2(x.float()).real.to(x.dtype)


def global_filter(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The truncated spectral filter as it is commonly written."""
    spectrum = torch.fft.rfft(x.float(), dim=1)
    kept = torch.zeros_like(spectrum)
    modes = weight.shape[0]
    kept[:, :modes] = spectrum[:, :modes] * torch.view_as_complex(weight)
    return (torch.fft.irfft(kept, n=x.shape[1], dim=1) + bias).to(x.dtype)


def sdpa(x: Tensor) -> Tensor:
    """The core of fused attention at the same width, heads of 64, without projections."""
    heads = x.unflatten(2, (-1, 64)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)


def fnet_case(shape: tuple[int, int, int], dtype: str, **options: Any) -> Case:
    runs: dict[str, Callable[..., Tensor]] = {
        "triton": lambda x: ops.fnet(x, impl="triton"),
        "torch": lambda x: ops.fnet(x, impl="torch"),
        "fft2": fft2,
    }
    if dtype == "bfloat16":
        runs["sdpa"] = sdpa
    return Case(
        "fnet", shape, dtype, runs, exact=lambda x: torch.fft.fft2(x.double()).real, **options
    )


def spectral_case(shape: tuple[int, int, int, int], dtype: str, **options: Any) -> Case:
    *size, modes = shape
    weight = torch.randn(modes, size[2], 2, device="cuda")
    bias = torch.randn(size[2], device="cuda")

    def exact(x: Tensor) -> Tensor:
        return ops.spectral(x.double(), weight.double(), bias.double(), impl="reference")

    runs: dict[str, Callable[..., Tensor]] = {
        name: lambda x, w, b, name=name: ops.spectral(x, w, b, impl=name)
        for name in ("triton", "torch")
    }
    runs["rfft"] = global_filter
    size_3 = (size[0], size[1], size[2])
    return Case("spectral", size_3, dtype, runs, modes, (weight, bias), exact, **options)


def cases() -> Iterator[Case]:
    """What is measured."""
    for fnet_shape in FNET:
        yield fnet_case(fnet_shape, "bfloat16")
    for spectral_shape in SPECTRAL:
        yield spectral_case(spectral_shape, "bfloat16")
    for dtype in ("float16", "float32"):
        yield fnet_case((8, 4096, 768), dtype, directions=("forward",))
        yield fnet_case((8, 512, 256), dtype, directions=("forward",))
        yield spectral_case((8, 4096, 768, 128), dtype, directions=("forward",))


def relative_error(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm() / exact.norm())


def measure(case: Case) -> Iterator[dict[str, Any]]:
    """One row for each implementation and direction; what fails becomes the row's status."""
    dtype = DTYPES[case.dtype]
    x = torch.randn(case.shape, device="cuda", dtype=dtype)
    y = torch.empty_like(x)
    floor = statistics.median(samples_ms(lambda: y.copy_(x)))
    grad = torch.randn_like(x)
    exact = None if case.exact is None else case.exact(x[:2])
    for name, run in case.runs.items():
        for direction in case.directions:
            backward = direction != "forward"
            inputs = [x.detach().requires_grad_(backward)]
            inputs += [one.detach().requires_grad_(backward) for one in case.parameters]

            def call(run: Callable[..., Tensor] = run, inputs: list[Tensor] = inputs) -> Any:
                y = run(*inputs)
                return torch.autograd.grad(y, inputs, grad) if y.requires_grad else y

            row: dict[str, Any] = {
                "op": case.op,
                "impl": name,
                "direction": direction,
                "batch": case.shape[0],
                "seq_len": case.shape[1],
                "dim": case.shape[2],
                "modes": case.modes,
                "dtype": case.dtype,
                "device": "cuda",
                "floor_ms": floor,
            }
            try:
                torch.cuda.reset_peak_memory_stats()
                base = torch.cuda.memory_allocated()
                call()
                row["peak_mb"] = (torch.cuda.max_memory_allocated() - base) / 1e6
                samples = samples_ms(call)
                row |= {"samples_ms": samples, "median_ms": statistics.median(samples)}
                row["multiple"] = row["median_ms"] / floor
                if exact is not None and not backward and name != "sdpa":
                    row["error"] = relative_error(run(x[:2], *case.parameters), exact)
                    row["rounding"] = relative_error(exact.to(dtype), exact)
                row["status"] = "ok"
            except Exception as error:
                row["status"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            yield row


def describe(started: float, commit: str | None) -> dict[str, Any]:
    """What the rows were measured on and with."""
    properties = torch.cuda.get_device_properties(0)
    if commit is None:
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = git.stdout.strip() or None
    return {
        "command": " ".join(["python", *sys.argv]),
        "gpu": properties.name,
        "gpu_memory_gb": round(properties.total_memory / 2**30),
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit,
        "seconds": round(time.time() - started, 1),
    }


def main() -> None:
    """Write results.jsonl and run.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", help="where the checkout measured is not a git one")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with (out / "results.jsonl").open("w") as results:
        for case in cases():
            for row in measure(case):
                results.write(json.dumps(row) + "\n")
                results.flush()
                print(
                    f"{row['op']:9}{row['impl']:9}{row['direction']:17}"
                    f"{[row['batch'], row['seq_len'], row['dim']]!s:20}{row['dtype']:9}"
                    f"{row.get('median_ms', 0):9.4f} ms {row.get('multiple', 0):6.2f}x"
                    f" {row.get('peak_mb', 0):8.0f} MB {row.get('error', 0):.2e}"
                    f"/{row.get('rounding', 0):.2e} {row['status']}",
                    flush=True,
                )
            torch.cuda.empty_cache()
    (out / "run.json").write_text(json.dumps(describe(started, options.commit), indent=1) + "\n")


if __name__ == "__main__":
    main()

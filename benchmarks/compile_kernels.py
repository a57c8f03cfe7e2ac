"""Compile the kernels of the sparse attentions for an H200 (sm_90) on any machine, without a GPU.

Prints what each takes of a multiprocessor: registers a thread, bytes spilled to the stack, and
shared memory. Fails where a kernel does not compile or asks for more than there is.

Usage: python benchmarks/compile_kernels.py [--width 64] [--dtype bfloat16] [--causal] [--padded]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from flashmix.ops.block_topk_attention.triton import launch as block
from flashmix.ops.local_attention.triton import launch as local
from flashmix.ops.topk_attention.triton import launch as topk

MOST_SHARED = 232_448
"""Bytes of shared memory that a program may have on sm_90."""


class Sm90:
    """Stands for a driver with that GPU: enough to compile, not to launch."""

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Its index."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Its stream."""
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes of a compiled kernel, by the tool that Triton brings."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", text)}


def compile_only(self: JITFunction[Any], grid: Any) -> Any:
    """What ``kernel[grid]`` does here in place of launching."""

    def compile(*args: Any, **options: Any) -> None:
        made = self.warmup(*args, grid=grid, **options)
        used = resources(made.asm["cubin"])
        print(
            f"  {self.fn.__name__:18} warps {made.metadata.num_warps}, stages "
            f"{made.metadata.num_stages}, registers {used['REG']}, spilled {used['STACK']}, "
            f"shared {made.metadata.shared}",
            flush=True,
        )
        assert made.metadata.shared <= MOST_SHARED, "more shared memory than there is"

    return compile


def main() -> None:
    """Compile forward and backward of each op."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--padded", action="store_true")
    options = parser.parse_args()
    driver.set_active(Sm90())
    JITFunction.__getitem__ = compile_only
    q, k, v = torch.zeros(3, 1, 2, 1024, options.width, dtype=getattr(torch, options.dtype))
    mask = torch.ones(1, 1024, dtype=torch.bool) if options.padded else None
    print(f"triton {triton.__version__}, sm_90, head width {options.width}, {options.dtype}")
    for window in (128, 512):
        print(f"local, window {window}")
        saved = local.forward(q, k, v, mask, window, options.causal)
        local.backward(q, q, k, v, *saved, mask, window, options.causal)
    for count in (32, 64):
        print(f"exact top-k {count}")
        y, index, weights = topk.forward(q, k, v, mask, count, options.causal)
        topk.backward(q, q, k, v, y, index.zero_(), weights)
    print("block top-k")
    found = block.forward(q, k, v, mask, 256, options.causal)
    block.backward(q, q, k, v, *found, mask, options.causal)


if __name__ == "__main__":
    main()

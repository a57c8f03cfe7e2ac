"""Compile the kernels of fnet and spectral for an H200 (sm_90) without one, and size them up.

Usage: TRITON_INTERPRET=0 python benchmarks/compile_columns.py [--dtype bfloat16] [TEXT]

Runs the launches of this package on tensors without memory, and hands each kernel to Triton's
compiler instead of a GPU. Prints shared memory, registers and spills of those whose line holds
TEXT. Exits with 1 where a kernel fails to compile or asks for more shared memory than there is.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from flashmix.ops._triton.columns import launch as columns
from flashmix.ops._triton.columns.plan import digits, longer
from flashmix.ops.fnet.plan import plan
from flashmix.ops.fnet.triton import bluestein, passes
from flashmix.ops.fnet.triton import launch as fnet
from flashmix.ops.spectral.plan import plan as spectral_plan
from flashmix.ops.spectral.triton import launch as spectral

MOST_SHARED = 227 << 10
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
OPTIONS = ("num_warps", "num_stages")


def _signature(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _constant(value: Any) -> bool:
    """As Triton does when it launches: absent tensors and ones are known to the compiler."""
    return value is None or (type(value) is int and value == 1)


def _divisible(value: Any) -> bool:
    """As on a GPU: its allocations are aligned, and Triton looks at integers that are."""
    return isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)


class Compiler:
    """Stands in for launching: compiles what is launched, once for each specialisation."""

    def __init__(self, text: str) -> None:
        self.text, self.shape, self.failed = text, "", 0
        self._seen: set[Any] = set()

    def compile(self, kernel: JITFunction[Any], args: tuple[Any, ...], kw: dict[str, Any]) -> None:
        """Compile ``kernel`` as it would be for these arguments."""
        options = {name: kw.pop(name) for name in OPTIONS if name in kw}
        values = dict(zip(kernel.arg_names, args, strict=False)) | kw
        constants = {
            (i,): values[one.name]
            for i, one in enumerate(kernel.params)
            if one.is_constexpr or _constant(values[one.name])
        }
        signature = {
            one.name: "constexpr" if (i,) in constants else _signature(values[one.name])
            for i, one in enumerate(kernel.params)
        }
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, one in enumerate(kernel.params)
            if (i,) not in constants and _divisible(values[one.name])
        }
        made = (
            kernel.__name__,
            *signature.values(),
            *constants.items(),
            *aligned,
            *options.values(),
        )
        about = f"{self.shape}  {kernel.__name__}"
        if repr(made) in self._seen or self.text not in about:
            return
        self._seen.add(repr(made))
        source = ASTSource(kernel, signature, constants, aligned)
        try:
            binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        except Exception as error:
            self.failed += 1
            print(f"FAILED {about}: {str(error).splitlines()[-1][:200]}", flush=True)
            return
        shared = binary.metadata.shared
        self.failed += shared > MOST_SHARED
        over = "  TOO MUCH SHARED MEMORY" if shared > MOST_SHARED else ""
        print(
            f"{about}: {shared / 1024:.0f} KB shared, {_resources(binary.asm['cubin'])}, "
            f"{options.get('num_warps', 4)} warps{over}",
            flush=True,
        )


def _resources(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert registers is not None, told
    return f"{registers[1]} registers, {registers[2]} bytes spilled"


FNET = ((64, 4096, 768), (8, 16384, 768), (64, 4096, 256), (16, 2048, 1024), (8, 512, 256))
LONG = ((1, 131072, 768), (1, 1048576, 768))


def launches(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Everything that is compiled, by what it is for."""
    for shape in (*FNET, *LONG):
        x = torch.empty(1, *shape[1:], dtype=dtype)
        cut = digits(shape[1])
        assert cut is not None
        old = plan(*shape[1:], dtype)
        if old is not None:
            yield f"fnet {list(shape)}", lambda x=x, old=old: fnet.mix(x, old, "backward")
        yield (
            f"fnet columns {list(shape)}",
            lambda x=x, cut=cut: passes.mix(x, cut, "backward"),
        )
        weight = torch.empty(1, shape[2], 2).expand(shape[1] // 2 + 1, -1, -1)

        def all_modes(x: torch.Tensor = x, weight: torch.Tensor = weight, cut: Any = cut) -> None:
            columns.filtered(x, weight, weight[0, :, 0], cut)

        yield f"spectral columns {list(shape)}", all_modes
        if shape[1] <= 16384:
            yield (
                f"spectral columns backward {list(shape)}",
                lambda x=x, w=weight, cut=cut: columns.filter_grads(x, x, w.contiguous(), cut),
            )
    for seq_len in (509, 4099):
        x = torch.empty(1, seq_len, 768, dtype=dtype)
        yield f"fnet bluestein {seq_len}", lambda x=x: bluestein.mix(x, "backward")
        cut = longer(2 * seq_len - 1)
        assert cut is not None
        weight = torch.empty(1, 768, 2).expand(cut.seq_len // 2 + 1, -1, -1)
        yield (
            f"spectral odd {seq_len}",
            lambda x=x, w=weight, cut=cut: columns.filtered(x, w, None, cut),
        )
    for seq_len, dim in ((4096, 768), (2048, 256)):
        x, weight = torch.empty(1, seq_len, dim, dtype=dtype), torch.empty(128, dim, 2)
        few = spectral_plan(seq_len, 128)
        assert few is not None

        def modes(x: torch.Tensor = x, weight: torch.Tensor = weight, few: Any = few) -> None:
            how = spectral.config(few, x.shape[2], x.dtype)
            z = spectral.filtered_modes(x, weight, few, how, False)
            spectral.synthesis(z, x, None, few, False, how)

        yield f"spectral 128 modes [{seq_len}, {dim}]", modes


def main() -> int:
    """Compile all of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", nargs="?", default="", metavar="TEXT")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    options = parser.parse_args()
    compiler = Compiler(options.text)

    def run(kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kw: Any) -> None:
        compiler.compile(kernel, args, kw)

    JITFunction.run = run  # type: ignore[method-assign,assignment]
    for shape, launch in launches(getattr(torch, options.dtype)):
        compiler.shape = shape
        launch()
    return 1 if compiler.failed else 0


if __name__ == "__main__":
    sys.exit(main())

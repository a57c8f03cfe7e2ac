"""Compile the GPU kernels for an H200 (sm_90) on any machine, without a GPU, and size them up.

Runs the launches of this package on tensors without contents, and compiles each kernel where it
would be launched. Prints registers a thread, bytes spilled to the stack and shared memory. Exits
with 1 where a kernel does not compile, asks for more shared memory than there is, or takes other
parameters than a launch plan gives it.

Usage: python benchmarks/compile_kernels.py [--dtype bfloat16] [--width 64] [--causal] [--padded]
       [TEXT]
Only cases whose name holds TEXT are compiled: "fnet", "local", "4096", ...
"""

from __future__ import annotations

import argparse
import functools
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
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from flashmix.ops._launcher.plan import Place, Value
from flashmix.ops._launcher.recording import Recording, bound
from flashmix.ops._triton.columns import launch as columns
from flashmix.ops._triton.columns.plan import digits, longer
from flashmix.ops._triton.sequences import Sequences
from flashmix.ops.block_topk_attention.triton import launch as block
from flashmix.ops.fnet.plan import plan
from flashmix.ops.fnet.triton import launch as fnet
from flashmix.ops.fnet.triton import passes, ragged
from flashmix.ops.fourier.triton import ragged as fourier_ragged
from flashmix.ops.local_attention.triton import launch as local
from flashmix.ops.local_attention.window import reach
from flashmix.ops.spectral.plan import plan as spectral_plan
from flashmix.ops.spectral.triton import launch as spectral
from flashmix.ops.spectral.triton import ragged as spectral_ragged
from flashmix.ops.topk_attention.triton import launch as topk
from flashmix.parallel.fnet.columns import Columns
from flashmix.parallel.spectral import modes_triton as modes_across_ranks

PROCESSORS = 132
"""Of an H200."""

MOST_SHARED = 227 << 10
"""Bytes of shared memory that a program may have on sm_90."""

SHAPES = ((4096, 768), (16384, 768), (4096, 256), (2048, 1024), (512, 256))
LONG = ((131072, 768), (1048576, 768))
ODD = (509, 4099)

Launches = Iterator[tuple[str, Callable[[], Any]]]


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


class _Anything(Recording):
    """Takes any tensor for one that was given."""

    def _value(self, x: torch.Tensor) -> Value:
        return Value("input", x)


def parameters_agree(kernel: JITFunction[Any], made: Any, arguments: dict[str, Any]) -> bool:
    """Whether a launch plan gives the compiled kernel as many parameters as it takes.

    Triton's two own come last; addresses stand where the kernel takes 64 bits.
    """
    entry = re.search(r"\.entry \w+\((.*?)\)", made.asm["ptx"], re.DOTALL)
    assert entry is not None
    taken = re.findall(r"\.param \.(\w+)", entry[1])[:-2]
    given = _Anything([], lambda _: None).parameters(kernel, made, arguments)
    wide = ("u64", "b64", "s64")
    return len(given) == len(taken) and all(
        kind in wide for word, kind in zip(given, taken, strict=True) if isinstance(word, Place)
    )


class Compiler:
    """Takes the place of launching."""

    def __init__(self) -> None:
        self.failed = 0
        self._launch = JITFunction.run
        self._printed: set[str] = set()

    def start(self, name: str) -> None:
        """Tell what the next kernels are for."""
        self._printed.clear()
        print(name, flush=True)

    def run(self, kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kw: Any) -> Any:
        """Compile ``kernel`` for these arguments."""
        name = kernel.fn.__name__
        try:
            made = self._launch(kernel, *args, grid=grid, warmup=True, **kw)
        except Exception as error:
            self.failed += 1
            print(f"  {name:18} FAILED: {str(error).splitlines()[-1][:200]}", flush=True)
            return None
        meta, used = made.metadata, resources(made.asm["cubin"])
        line = (
            f"  {name:18} warps {meta.num_warps}, stages {meta.num_stages}, registers "
            f"{used['REG']}, spilled {used['STACK']}, shared {meta.shared}"
        )
        if meta.shared > MOST_SHARED:
            self.failed += 1
            line += ", MORE THAN THERE IS"
        if not parameters_agree(kernel, made, bound(kernel, args, kw)):
            self.failed += 1
            line += ", OTHER PARAMETERS THAN A PLAN'S"
        if line not in self._printed:
            self._printed.add(line)
            print(line, flush=True)
        return made


def transforms(dtype: torch.dtype) -> Launches:
    """FNet and filters over all modes."""
    for seq_len, dim in (*SHAPES, *LONG):
        x = torch.empty(1, seq_len, dim, dtype=dtype)
        cut, old = digits(seq_len), plan(seq_len, dim, dtype)
        assert cut is not None
        if old is not None:
            yield f"fnet [{seq_len}, {dim}]", lambda x=x, old=old: fnet.mix(x, old, "backward")
        yield (
            f"fnet columns [{seq_len}, {dim}]",
            lambda x=x, cut=cut: passes.mix(x, cut, "backward"),
        )
        w = torch.empty(1, dim, 2).expand(seq_len // 2 + 1, -1, -1)
        yield (
            f"spectral columns [{seq_len}, {dim}]",
            lambda x=x, w=w, cut=cut: columns.filtered(x, w, w[0, :, 0], cut),
        )
        if seq_len <= 16384:
            yield (
                f"spectral columns backward [{seq_len}, {dim}]",
                lambda x=x, w=w, cut=cut: columns.filter_grads(x, x, w.contiguous(), cut),
            )
    for seq_len in ODD:
        x, cut = torch.empty(1, seq_len, 768, dtype=dtype), longer(2 * seq_len - 1)
        assert cut is not None
        w = torch.empty(1, 768, 2).expand(cut.seq_len // 2 + 1, -1, -1)
        yield (
            f"spectral odd {seq_len}",
            lambda x=x, w=w, cut=cut: columns.filtered(x, w, None, cut),
        )


def any_lengths(dtype: torch.dtype) -> Launches:
    """Padded and packed batches."""
    for seq_len, dim in ((512, 768), (512, 256)):
        x = torch.empty(32, seq_len, dim, dtype=dtype)
        offsets = torch.empty(33, dtype=torch.int32)
        order = torch.empty(32, seq_len, dtype=torch.int32)
        padded = Sequences(32, seq_len, order, offsets[:32], offsets)
        packed = Sequences(32, 32 * seq_len, offsets=offsets)
        yield (
            f"fnet padded [{seq_len}, {dim}]",
            lambda x=x, where=padded: ragged.mix(x, where, "backward"),
        )
        yield (
            f"fnet packed [{seq_len}, {dim}]",
            lambda x=x, where=packed: ragged.mix(x.flatten(0, 1), where, "backward"),
        )
        for modes, unitary in ((128, False), (dim // 2, True)):

            def run(x: torch.Tensor, where: Sequences, w: torch.Tensor, unitary: bool) -> None:
                bias = None if unitary else w[0, :, 0].contiguous()
                spectral_ragged.filtered(x, w, bias, where, unitary)
                spectral_ragged.gradients(x, x, w, where, unitary)

            w = torch.empty(modes, dim, 2)
            yield (
                f"spectral {modes} modes padded [{seq_len}, {dim}]",
                functools.partial(run, x, padded, w, unitary),
            )
            yield (
                f"spectral {modes} modes packed [{seq_len}, {dim}]",
                functools.partial(run, x.flatten(0, 1), packed, w, unitary),
            )
        heads = x.unflatten(2, (-1, 64))
        for name, v, where in (
            ("padded", heads, padded),
            ("packed", heads.flatten(0, 1), packed),
        ):

            def mix(v: torch.Tensor = v, where: Sequences = where) -> None:
                fourier_ragged.mix(v, where)
                fourier_ragged.gradient(v, v, where)

            yield f"fourier {name} [{seq_len}, {dim // 64}, 64]", mix


def across_ranks(dtype: torch.dtype) -> Launches:
    """FNet where half of the tokens are another rank's."""
    for seq_len, dim in ((16384, 768), *LONG, (512, 256)):
        x, half = torch.empty(1, seq_len // 2, dim, dtype=dtype), dim // 4
        chunks = [[slice(0, half), slice(half, 2 * half)]]

        def run(x: torch.Tensor = x, chunks: Any = chunks) -> None:
            batch, count, dim = x.shape
            counts = [count, count]
            columns = Columns(batch, dim, x.dtype, x.device, counts, 0, "backward", chunks)
            columns.send(0, x)
            columns.receive(0, columns.work(0, x.new_empty(columns.elements)), x)

        yield f"fnet across ranks [{seq_len}, {dim}]", run


def modes_of_ranks(dtype: torch.dtype) -> Launches:
    """Filters of half the width's modes, of which a rank has half of the tokens."""
    ours = modes_across_ranks
    for seq_len, dim in ((131072, 768), (512, 256)):
        kept = dim // 2
        place = ours.SlicePosition(1, 0, seq_len // 2, dim, seq_len, kept)
        modes, w = torch.empty(1, 2 * kept, dim), torch.empty(kept, dim, 2)

        def run(place: Any = place, modes: torch.Tensor = modes, w: torch.Tensor = w) -> None:
            batch = ours.chunk_batches(place, ours.ANALYSIS, dtype, modes.device)[0]
            ours.sum_chunks(modes.expand(batch.chunks, -1, -1), modes, batch, place)
            batch = ours.chunk_batches(place, ours.SYNTHESIS, dtype, modes.device)[0]
            twiddled, bias = modes.expand(batch.chunks, -1, -1).to(dtype), w[0, :, 0].contiguous()
            by = ours.Filter(w, bias, False)
            ours.filter_and_twiddle(modes, twiddled, by, batch, place, 1.0)
            by = ours.Filter(w, None, False, conjugate=True)
            gradients = ours.Gradients(modes, modes, w, bias)
            ours.filter_and_twiddle(modes, twiddled, by, batch, place, 1.0, gradients)

        yield f"modes across ranks [{seq_len}, {dim}]", run


def few_modes(dtype: torch.dtype) -> Launches:
    """Filters of 128 modes, of one sequence and of many."""
    spectral.processors = lambda device: PROCESSORS  # type: ignore[assignment]
    for batch, seq_len, dim in ((1, 4096, 768), (32, 4096, 768), (8, 16384, 768), (8, 2048, 256)):
        x, few = torch.empty(batch, seq_len, dim, dtype=dtype), spectral_plan(seq_len, 128)
        assert few is not None

        def run(x: torch.Tensor = x, few: Any = few) -> None:
            how = spectral.config(few, x.shape[2], x.dtype)
            w = torch.empty(128, x.shape[2], 2)
            z = spectral.filtered_modes(x, w, few, how, False)
            spectral.synthesis(z, x, None, few, False, how)
            modes = spectral.analysis(x, few, how)
            spectral.conjugate_filtered(modes, w, few, x.dtype, False)
            spectral.filter_gradients(modes, modes, w, few, x.dtype, False)

        yield f"spectral 128 modes [{batch}, {seq_len}, {dim}]", run


def attentions(dtype: torch.dtype, width: int, causal: bool, padded: bool) -> Launches:
    """Local and top-k attention, forward and backward."""
    q, k, v = torch.zeros(3, 1, 2, 1024, width, dtype=dtype)
    mask = torch.ones(1, 1024, dtype=torch.bool) if padded else None

    def windowed(window: int) -> None:
        sides = reach(window, causal)
        saved = local.forward(q, k, v, mask, *sides)
        local.backward(q, q, k, v, *saved, mask, *sides)

    def exact(count: int) -> None:
        y, index, weights = topk.forward(q, k, v, mask, count, causal)
        topk.backward(q, q, k, v, y, index.zero_(), weights)

    def blocks() -> None:
        found = block.forward(q, k, v, mask, 256, causal)
        block.backward(q, q, k, v, *found, mask, causal)

    for window in (128, 512):
        yield f"local attention, window {window}", lambda window=window: windowed(window)
    for count in (32, 64):
        yield f"exact top-k {count}", lambda count=count: exact(count)
    yield "block top-k", blocks


def main() -> int:
    """Compile all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?", default="", metavar="TEXT")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--width", type=int, default=64, help="of an attention's head")
    parser.add_argument("--causal", action="store_true", help="attentions")
    parser.add_argument("--padded", action="store_true", help="attentions")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    driver.set_active(Sm90())
    compiler = Compiler()
    JITFunction.run = lambda kernel, *args, **kw: compiler.run(kernel, *args, **kw)
    print(f"triton {triton.__version__}, sm_90, {options.dtype}, heads {options.width} wide")
    cases = (
        *transforms(dtype),
        *any_lengths(dtype),
        *across_ranks(dtype),
        *modes_of_ranks(dtype),
        *few_modes(dtype),
        *attentions(dtype, options.width, options.causal, options.padded),
    )
    for name, launch in cases:
        if options.text in name:
            compiler.start(name)
            launch()
    return 1 if compiler.failed else 0


if __name__ == "__main__":
    sys.exit(main())

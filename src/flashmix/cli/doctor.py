"""``flashmix doctor``: what is installed, what is missing and how to get it, the ceilings."""

from __future__ import annotations

import argparse
from typing import Any

EXTRAS = {
    "scikit-learn": ("tasks", "the digits task of flashmix bench quick"),
    "transformers": ("hf", "flashmix.swap and flashmix swap"),
    "duckdb": ("query", "flashmix query"),
    "altair": ("report", "report.html, figures/ and flashmix serve"),
    "vl-convert-python": ("report", "report.html, figures/ and flashmix serve"),
    "triton": ("triton", "GPU kernels of flashmix's own"),
}

EPILOG = """\
examples:
  flashmix doctor
  flashmix doctor --no-measure
"""


def add_command(commands: Any) -> None:
    """Add ``doctor`` to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="check the installation and measure this machine's limits",
        description="Show what is installed, what is missing and how to get it, build the native "
        "CPU kernels unless they are built, and measure the machine's copy bandwidth and matmul "
        "rate.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--no-measure", action="store_true", help="skip the measurements")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    import torch
    from rich.console import Console

    from flashmix.bench import machine
    from flashmix.ops import OPERATORS, _user_table, explain
    from flashmix.ops._cpu import build, library

    console = Console(highlight=False, soft_wrap=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = machine.describe(device)
    console.print(f"flashmix  {facts['flashmix']}, Python {facts['python']}, {facts['system']}")
    console.print(
        f"processor {facts['cpu']} ({facts['cpu_capability']}), {facts['cores']} cores, "
        f"{facts['threads']} threads"
    )
    if device == "cuda":
        console.print(
            f"GPU       {facts['gpu']}, {facts['gpu_memory_gb']} GB, CUDA {facts['cuda']}"
        )
    else:
        console.print("GPU       none that PyTorch sees")
    for name in ("torch", "numpy", "rich"):
        console.print(f"  {name:<18}{machine.installed(name)}")
    for name, (extra, purpose) in EXTRAS.items():
        version = machine.installed(name)
        missing = f"missing; for {purpose}: pip install 'flashmix\\[{extra}]'"
        console.print(f"  {name:<18}{version or missing}")
    absent = library.missing()
    console.print(
        f"native    {f'none; {absent}' if absent else build.library_path()}", markup=False
    )
    place = _user_table.path()
    tuned = str(place) if _user_table.read() else "none; flashmix tune measures what auto runs"
    console.print(f"tuned     {tuned}", markup=False)
    console.print("what impl='auto' runs here (float32):")
    for name, operator in OPERATORS.items():
        shape = (2, 512, 256) if operator.axes == "B, N, D" else (2, 4, 512, 64)
        told = explain(name, shape, torch.float32, device)
        console.print(f"  {name:<22}{told.impl}: {told.reason}")
    if not arguments.no_measure:
        limits = machine.ceilings(device, "float32" if device == "cpu" else "bfloat16")
        console.print(f"copy      {limits['copy_gb_per_s']:.1f} GB/s, bytes read and written")
        console.print(
            f"matmul    {limits['matmul_gflop_per_s']:,.0f} GFLOP/s, {limits['matmul_dtype']}"
        )
    return 0

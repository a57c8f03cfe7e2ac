"""``flashmix doctor``: what is installed, what is missing and how to get it, the ceilings."""

from __future__ import annotations

import argparse
from typing import Any

EXTRAS = {
    "scikit-learn": ("tasks", "the digits task of flashmix bench quick"),
    "transformers": ("hf", "flashmix.swap and flashmix swap"),
    "onnxruntime": ("onnx", "ONNX Runtime in flashmix profile"),
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

    from flashmix.bench import machine
    from flashmix.cli.terminal import Terminal
    from flashmix.ops import OPERATORS, explain
    from flashmix.ops import _build as build
    from flashmix.ops._cpu import library
    from flashmix.ops._launcher import library as launcher
    from flashmix.ops.dispatch import tables

    terminal = Terminal()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    here = machine.describe(device)
    terminal.say(f"flashmix  {here['flashmix']}, Python {here['python']}, {here['system']}")
    terminal.say(
        f"processor {here['cpu']} ({here['cpu_capability']}), {here['cores']} cores, "
        f"{here['threads']} threads"
    )
    if device == "cuda":
        terminal.say(f"GPU       {here['gpu']}, {here['gpu_memory_gb']} GB, CUDA {here['cuda']}")
    else:
        terminal.say("GPU       none that PyTorch sees")
    for name in ("torch", "numpy", "rich"):
        terminal.say(f"  {name:<18}{machine.installed(name)}")
    for name, (extra, purpose) in EXTRAS.items():
        version = machine.installed(name)
        missing = f"missing; for {purpose}: pip install 'flashmix[{extra}]'"
        terminal.say(f"  {name:<18}{version or missing}")
    absent = library.missing()
    terminal.say(f"native    {f'none; {absent}' if absent else build.library_path()}")
    without = launcher.loaded()
    if without is None:
        terminal.say(f"launcher  {build.library_path(launcher.sources())}")
    else:
        terminal.say(f"launcher  none; {without}; each call runs its Python")
    place = tables.path()
    tuned = str(place) if tables.user() else "none; flashmix tune measures what auto runs"
    terminal.say(f"tuned     {tuned}")
    terminal.say("what impl='auto' runs here (float32):")
    for name, operator in OPERATORS.items():
        shape = (2, 512, 256) if operator.axes == "B, N, D" else (2, 4, 512, 64)
        decision = explain(name, shape, torch.float32, device)
        terminal.say(f"  {name:<22}{decision.impl}: {decision.reason}")
    if not arguments.no_measure:
        limits = machine.ceilings(device, "float32" if device == "cpu" else "bfloat16")
        terminal.say(f"copy      {limits['copy_gb_per_s']:.1f} GB/s, bytes read and written")
        terminal.say(
            f"matmul    {limits['matmul_gflop_per_s']:,.0f} GFLOP/s, {limits['matmul_dtype']}"
        )
    return 0

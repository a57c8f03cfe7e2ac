"""Run the kernels' tests on this machine's GPU: in parallel, on poisoned memory, and sanitized.

Usage: python scripts/test_gpu.py [--jobs N] [--no-sanitizer]

1. tests/test_triton_*.py, compiled, large shapes included. Compiling is most of the time, so tests
   run in N processes. Every fresh tensor holds NaN (tests/conftest.py), so that an element which
   nobody wrote shows.
2. compute-sanitizer (memcheck, then racecheck) over the tests of small shapes. It comes with the
   CUDA toolkit; where it is absent this step is left out, and said to be.

Exits with 1 where anything failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["-m", "not slow", "-k", "not compiles and not registration and not graph and not cached"]
"""Leaves the tests that take every kernel at shapes small enough for a hundredth of the speed."""


def pytest(*arguments: str) -> list[str]:
    """The command of a pytest process, which names each test as it ends.

    Without the plugin pytest-timeout, the project's own options, which name a limit, are left out.
    """
    limited = importlib.util.find_spec("pytest_timeout") is not None
    options = ["-v", "-v", "-p", "no:cacheprovider", *(() if limited else ("-o", "addopts="))]
    return [sys.executable, "-m", "pytest", *options, *arguments]


def together(commands: list[list[str]]) -> bool:
    """Run processes side by side; whether all went well."""
    running = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    codes = [process.wait() for process in running]
    return not any(codes)


def tests(jobs: int) -> bool:
    """All files, by pytest-xdist where it is installed, else a process for each file."""
    files = [str(file) for file in sorted((ROOT / "tests").glob("test_triton_*.py"))]
    if importlib.util.find_spec("xdist"):
        return together([pytest("-n", str(jobs), *files)])
    print("pytest-xdist is not installed: one process for each file")
    return together([pytest(file) for file in files])


def sanitized(tool: str) -> bool:
    """The small tests under each of compute-sanitizer's checks, files side by side."""
    ops = ("fnet", "spectral", "columns", "local", "topk", "block_topk")
    files = [f"tests/test_triton_{part}.py" for part in (*ops, "parallel")]
    for check in ("memcheck", "racecheck"):
        under = [tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all"]
        if not together([[*under, *pytest(file, *SMALL, "-o", "timeout=1200")] for file in files]):
            return False
    return True


def main() -> int:
    """Run both steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--no-sanitizer", action="store_true")
    told = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "PyTorch sees no GPU; the kernels' arithmetic is tested without one by:\n"
            "  TRITON_INTERPRET=1 pytest tests/test_triton_*.py"
        )
        return 1
    start = time.perf_counter()
    good = tests(told.jobs)
    print(f"tests took {time.perf_counter() - start:.0f} s")
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    if told.no_sanitizer:
        print("compute-sanitizer: left out as asked")
    elif tool is None:
        print("compute-sanitizer: NOT RUN, it is not installed (it comes with the CUDA toolkit)")
    else:
        good = sanitized(tool) and good
    print("all went well" if good else "something failed; see above")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""Compile the native kernels once and keep the library in the user's cache.

The library depends on neither Python nor PyTorch's headers, so compiling takes seconds and one
library serves every version of both. Its name holds a hash of sources and flags and the
instruction set, so that machines of different kinds can share a home.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from flashmix.errors import ImplementationError

SOURCES = Path(__file__).with_name("csrc")

FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-shared",
    "-fno-math-errno",
    "-Wno-psabi",
)

# As PyTorch names what it found the processor to have; elsewhere the compiler's default.
INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma", "-mbmi2"),
    "AVX512": ("-mavx2", "-mfma", "-mbmi2", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}

MOST_SECONDS = 300

log = logging.getLogger(__name__)
"""Says when a build begins, at level INFO; the command line shows it."""


def capability() -> str:
    """The instruction set to build for."""
    return torch.backends.cpu.get_cpu_capability()


def flags() -> list[str]:
    """The compiler's flags on this machine; FLASHMIX_CXXFLAGS adds to them."""
    more = shlex.split(os.environ.get("FLASHMIX_CXXFLAGS", ""))
    return [*FLAGS, *INSTRUCTIONS.get(capability(), ()), *more]


def cache_folder() -> Path:
    """``flashmix`` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flashmix"


def library_path() -> Path:
    """Where the library for this machine is, or would be."""
    digest = hashlib.sha256(repr(flags()).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    kind = f"{platform.machine()}-{capability().lower().replace(' ', '-')}"
    return cache_folder() / f"kernels-{kind}-{digest.hexdigest()[:16]}.so"


def compiler() -> list[str] | None:
    """The C++ compiler: $CXX, or the first found."""
    if told := os.environ.get("CXX"):
        return shlex.split(told)
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [found] if found else None


def build() -> Path:
    """Compile the library unless it is there; safe in many processes at once.

    Raises:
        ImplementationError: there is no compiler, it failed, or the cache cannot be written.
    """
    path = library_path()
    if path.exists():
        return path
    command = compiler()
    if command is None:
        raise ImplementationError(
            "needs a C++ compiler, and none is installed; install g++ or clang++, or name one in "
            "CXX"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent / "build.lock"):
            if not path.exists():
                log.info("compiling the native CPU kernels, once, for a few seconds: %s", path)
                _compile(command, path)
    except OSError as error:
        raise ImplementationError(
            f"cannot be built in {path.parent}: {error}; set XDG_CACHE_HOME to a folder that can "
            "be written"
        ) from error
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        made = Path(folder) / path.name
        sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
        try:
            done = subprocess.run(
                [*command, *flags(), *sources, "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=MOST_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ImplementationError(f"cannot be built: {error}") from error
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "")
            raise ImplementationError(
                f"cannot be built: {shlex.join(command)} exited with {done.returncode}: {first}"
            )
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(path)

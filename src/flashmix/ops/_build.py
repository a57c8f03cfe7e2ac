"""Compile native code once and keep the library in the user's cache.

There are two libraries: the CPU's kernels (:data:`KERNELS`), which depend on neither Python nor
PyTorch's headers, so that compiling takes seconds and one library serves every version of both;
and the launcher (:mod:`._launcher`), one for each release of PyTorch. The name of a library holds
a hash of its sources and flags and the instruction set, so that machines of different kinds can
share a home. Loading it runs what it holds, so it is taken only from a folder and file that nobody
else can write, and only as built.
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
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from flashmix.errors import ImplementationError

FLAGS = ("-fPIC", "-fvisibility=hidden", "-shared", "-Wno-psabi")

# As PyTorch names what it found the processor to have; elsewhere the compiler's default.
INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma", "-mbmi2"),
    "AVX512": ("-mavx2", "-mfma", "-mbmi2", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}

MOST_SECONDS = 300


@dataclass(frozen=True)
class Sources:
    """What a library is built from.

    Attributes:
        name: the beginning of its file's name.
        folder: its sources.
        options: the compiler's, beyond those that all libraries share.
        what: it is, as a message says.
        takes: how long compiling takes.
    """

    name: str
    folder: Path
    options: tuple[str, ...]
    what: str
    takes: str

    def flags(self) -> list[str]:
        """The compiler's flags on this machine; FLASHMIX_CXXFLAGS adds to them."""
        more = _words("FLASHMIX_CXXFLAGS")
        return [*self.options, *FLAGS, *INSTRUCTIONS.get(capability(), ()), *more]


KERNELS = Sources(
    "kernels",
    Path(__file__).parent / "_cpu" / "csrc",
    ("-std=c++17", "-O3", "-fno-math-errno"),
    "the native CPU kernels",
    "a few seconds",
)

log = logging.getLogger(__name__)
"""Says when a build begins, at level INFO; the command line shows it."""


def capability() -> str:
    """The instruction set to build for."""
    return torch.backends.cpu.get_cpu_capability()


def _words(variable: str) -> list[str]:
    """The words of an environment variable, quoted as for a shell."""
    text = os.environ.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ImplementationError(f"cannot be built: {variable}={text!r}: {error}") from error


def cache_folder() -> Path:
    """``flashmix`` in the user's cache.

    Raises:
        ImplementationError: the user has no home and $XDG_CACHE_HOME names no folder.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except (RuntimeError, OSError) as error:
        raise ImplementationError(
            "needs a folder for its cache, and the user has no home directory; set XDG_CACHE_HOME "
            "to a folder that can be written"
        ) from error
    return Path(base) / "flashmix"


def library_path(sources: Sources = KERNELS) -> Path:
    """Where the library for this machine is, or would be."""
    digest = hashlib.sha256(repr(sources.flags()).encode())
    for source in sorted(sources.folder.iterdir()):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    kind = f"{platform.machine()}-{capability().lower().replace(' ', '-')}"
    return cache_folder() / f"{sources.name}-{kind}-{digest.hexdigest()[:16]}.so"


def compiler() -> list[str] | None:
    """The C++ compiler: $CXX, or the first found."""
    if os.environ.get("CXX"):
        return _words("CXX") or None
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [found] if found else None


def build(sources: Sources = KERNELS) -> Path:
    """Compile a library unless it is there; safe in many processes at once.

    Raises:
        ImplementationError: there is no compiler, it failed, or the cache cannot be written.
    """
    path = library_path(sources)
    try:
        _own_folder(path.parent)
        if _complete(path):
            return path
        command = compiler()
        if command is None:
            raise ImplementationError(
                "needs a C++ compiler, and none is installed; install g++ or clang++, or name one "
                "in CXX"
            )
        with _locked(path.parent / "build.lock"):
            if not _complete(path):
                log.info("compiling %s, once, for %s: %s", sources.what, sources.takes, path)
                for stale in path.parent.glob("build-*"):  # of builds that were killed
                    shutil.rmtree(stale, ignore_errors=True)
                _compile(sources, command, path)
    except OSError as error:
        raise ImplementationError(
            f"cannot be built in {path.parent}: {error}; set XDG_CACHE_HOME to a folder that can "
            "be written"
        ) from error
    return path


def discard(path: Path) -> None:
    """Forget a library that does not load, so that the next process builds it anew."""
    with contextlib.suppress(OSError):
        _digest_of(path).unlink(missing_ok=True)


def _own_folder(folder: Path) -> None:
    """Make ``folder`` for this user alone, or raise unless only this user can write there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    above, own = folder.parent.stat(), folder.stat()
    if own.st_uid != os.geteuid():
        raise ImplementationError(
            f"loads nothing from {folder}, which belongs to another user; set XDG_CACHE_HOME to a "
            "folder of your own"
        )
    if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
        raise ImplementationError(
            f"loads nothing from {folder}, which any user can replace; set XDG_CACHE_HOME to a "
            "folder that only you can write"
        )
    if own.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        folder.chmod(0o700)


def _digest_of(path: Path) -> Path:
    """The file that holds the SHA-256 of a library, written before it."""
    return path.with_suffix(".sha256")


def _complete(path: Path) -> bool:
    """Whether the library is there as it was built, and only this user can write it."""
    for file in (path, _digest_of(path)):
        try:
            found = file.lstat()
        except FileNotFoundError:
            return False
        writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or writable:
            return False
    return hashlib.sha256(path.read_bytes()).hexdigest().encode() == _digest_of(path).read_bytes()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock, which the system frees when its holder ends, however it ends."""
    deadline = time.monotonic() + 2 * MOST_SECONDS
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(handle, "w") as file:  # noqa: PTH123
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ImplementationError(
                        f"cannot be built: another process has held {path} for "
                        f"{2 * MOST_SECONDS} s; end it and try again"
                    ) from None
                time.sleep(0.05)
        yield


def _compile(sources: Sources, command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        made = Path(folder) / path.name
        files = [str(source) for source in sorted(sources.folder.glob("*.cpp"))]
        try:
            done = subprocess.run(
                [*command, *sources.flags(), *files, "-o", str(made)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=MOST_SECONDS,
                check=False,
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise ImplementationError(f"cannot be built: {error}") from error
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "")
            raise ImplementationError(
                f"cannot be built: {shlex.join(command)} exited with {done.returncode}: {first}"
            )
        if not made.is_file():
            raise ImplementationError(
                f"cannot be built: {shlex.join(command)} exited with 0 and made no library"
            )
        made.chmod(0o700)
        digest = made.with_suffix(".sha256")
        digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
        digest.chmod(0o600)
        for file in (digest, made):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        digest.replace(_digest_of(path))
        made.replace(path)

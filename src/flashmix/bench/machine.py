"""What the measurements ran on, and the machine's own limits."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch

from flashmix._core.machine import cpu_name
from flashmix._version import __version__
from flashmix.bench.process import package
from flashmix.bench.timing import clock
from flashmix.errors import ArgumentError

PACKAGES = ("torch", "numpy", "triton", "transformers", "scikit-learn")


def installed(package: str) -> str | None:
    """The installed version of ``package``, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit this package runs from, with "+" when the tree differs from it.

    FLASHMIX_COMMIT tells it where the package runs from a copy without its history.
    """
    if named := os.environ.get("FLASHMIX_COMMIT"):
        return named
    here = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    tracked = git("ls-files", "--error-unmatch", str(Path(__file__)))
    if not head or tracked is None:
        return None
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def code() -> str:
    """A digest of this package's sources, which decide what a run measures."""
    root, digest = Path(package()), hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".cpp", ".h", ".json"):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


DECIDES = ("cpu", "cpu_capability", "cores", "gpu", "gpu_memory_gb", "cuda", "python", "flashmix")
"""What of a machine decides over its rows, beside packages and code."""


def check_same(run: dict[str, Any], device: str, folder: Path, **others: Any) -> None:
    """Raise ArgumentError where what is left of ``run`` would be done by another machine or code.

    ``others`` are fields of the run itself as they are now.
    """
    then, now = run["machine"], describe(device)
    pairs = {name: (then.get(name), now.get(name)) for name in DECIDES}
    before, installed_now = then.get("packages", {}), now["packages"]
    names = dict.fromkeys([*before, *installed_now])
    pairs |= {name: (before.get(name), installed_now.get(name)) for name in names}
    pairs |= {name: (run.get(name), value) for name, value in others.items()}
    if "code" in then:
        if then["code"] != now["code"]:
            pairs["code of flashmix"] = (
                f"{then['code']} (commit {then.get('commit') or 'unknown'})",
                f"{now['code']} (commit {now['commit'] or 'unknown'})",
            )
    else:
        pairs["commit"] = (then.get("commit"), now["commit"])
    changed = [f"{name} {a}, here {b}" for name, (a, b) in pairs.items() if a != b]
    if changed:
        raise ArgumentError(
            f"{folder} was begun with {'; '.join(changed)}: its rows would not compare with those "
            "that are left. Resume it there, or start a new run"
        )


def describe(device: str) -> dict[str, Any]:
    """Machine and versions, as stored in run.json."""
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "flashmix": __version__,
        "commit": commit(),
        "code": code(),
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_capability"] = f"{properties.major}.{properties.minor}"
        found["gpu_memory_gb"] = round(properties.total_memory / 1e9, 1)
        found["cuda"] = torch.version.cuda
    return found


def ceilings(device: str, dtype: str) -> dict[str, Any]:
    """Measured copy bandwidth (GB/s, bytes read plus written) and matmul rate (GFLOP/s)."""
    kind = getattr(torch, dtype)
    size = (1 << 30) if device == "cuda" else (1 << 27)
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    copy_seconds = _median_seconds(lambda: target.copy_(source), device)
    matmul_seconds = _median_seconds(lambda: a @ b, device)
    return {
        "copy_gb_per_s": 2 * size / copy_seconds / 1e9,
        "matmul_gflop_per_s": 2 * n**3 / matmul_seconds / 1e9,
        "matmul_dtype": dtype,
    }


def _median_seconds(action: Any, device: str) -> float:
    timer = clock(action, device)
    timer(2)
    return statistics.median(timer(1) for _ in range(9))

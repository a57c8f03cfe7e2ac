"""What the tests of measurement share: hand-made rows and runs, and real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flashmix.bench import BenchmarkCase
from flashmix.bench.stats import summary

BASELINES = {"attention (naive)": "naive", "attention (fused)": "sdpa"}


def make_row(
    label: str,
    seq_len: int,
    samples_ms: float | Sequence[float] = 1.0,
    *,
    status: str = "ok",
    direction: str = "forward",
    peak_mb: float = 1.0,
    **fields: Any,
) -> dict[str, Any]:
    """A row as the runner writes it; one time stands for five samples without any spread."""
    case = BenchmarkCase(
        suite="quick",
        mixer=label.removesuffix(" (naive)").removesuffix(" (fused)"),
        impl=BASELINES.get(label, "auto"),
        direction=direction,
        batch=2,
        seq_len=seq_len,
        dim=32,
        num_heads=4,
    )
    row = {**case.as_dict(), "label": case.label, "status": status}
    if status != "ok":
        return {**row, "error": f"it was {status}", **fields}
    samples = list(samples_ms) if isinstance(samples_ms, Sequence) else [samples_ms] * 5
    measured = {"samples_ms": samples, **summary(samples)}
    return {**row, **measured, "params": 7, "peak_mb": peak_mb, "rss_mb": 300.0, **fields}


def make_sweep(label: str, times_ms: dict[int, float], **fields: Any) -> list[dict[str, Any]]:
    """Rows of one label by length."""
    return [make_row(label, n, ms, **fields) for n, ms in times_ms.items()]


def make_training(mixer: str, accuracy: float, *, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """A row of a training that went well."""
    case = BenchmarkCase(
        suite="quick",
        mixer=mixer,
        direction="train",
        batch=32,
        seq_len=64,
        dim=64,
        num_heads=4,
        seed=seed,
        seconds=5.0,
    )
    outcome = {"accuracy": accuracy, "steps": 100, "train_seconds": 5.0, "params": 7}
    return {**case.as_dict(), "label": case.label, "status": "ok", **outcome, **fields}


CEILINGS = {"copy_gb_per_s": 10.0, "matmul_gflop_per_s": 100.0, "matmul_dtype": "float32"}
"""Limits of a machine, which take seconds to measure."""


def make_run(**fields: Any) -> dict[str, Any]:
    """What run.json holds."""
    machine = {
        "cpu": "a processor",
        "cpu_capability": "AVX2",
        "cores": 2,
        "threads": 1,
        "system": "Linux",
        "python": "3.11.0",
        "flashmix": "0.1.0",
        "commit": None,
        "packages": {"torch": "2.11.0"},
    }
    return {
        "suite": "quick",
        "command": "flashmix bench quick",
        "notes": [],
        "grid": {"device": "cpu"},
        "threads": 1,
        "seed": 0,
        "time_limit_s": 60.0,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": None,
        "machine": machine,
        "ceilings": CEILINGS,
        **fields,
    }


NO_PAGE = Path(__file__).parent / "no_page"
WITHOUT_PAGE = {
    "PYTHONPATH": os.pathsep.join([str(NO_PAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
}
"""Finds an altair that cannot be imported: a run ends without its page, which takes seconds."""


def start_cli(
    *arguments: object, before: Callable[[], object] = lambda: None, page: bool = False
) -> subprocess.Popen:
    """``flashmix`` in a process group of its own, as a shell would start it."""

    def prepare() -> None:
        # A shell's background jobs ignore SIGINT, and the tests may be one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        before()

    return subprocess.Popen(
        [sys.executable, "-m", "flashmix", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=prepare,
        env={
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            **({} if page else WITHOUT_PAGE),
        },
    )


def run_cli(*arguments: object, **options: Any) -> subprocess.CompletedProcess:
    """``flashmix`` from start to end."""
    process = start_cli(*arguments, **options)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def workers_of(parent: int) -> list[int]:
    """Ids of the living worker processes that ``parent`` started."""
    return [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit()
        and _parent(folder) == parent
        and b"flashmix.bench.worker" in _read(folder / "cmdline")
    ]


def alive(process: int) -> bool:
    """Whether the process runs; one that ended and was not yet fetched does not."""
    stat = _read(Path("/proc") / str(process) / "stat")
    return bool(stat) and stat.rpartition(b")")[2].split()[0] != b"Z"


def _parent(folder: Path) -> int | None:
    stat = _read(folder / "stat")
    return int(stat.rpartition(b")")[2].split()[1]) if stat else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def wait_until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Wait for ``condition``; the limit only guards against waiting for ever."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.01)

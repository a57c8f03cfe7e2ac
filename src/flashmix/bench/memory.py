"""Peak memory of one call, beyond what its inputs and weights already held."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

MB = 1e6


def peak_mb(action: Callable[[], object], device: str) -> float:
    """Peak of tensor memory that ``action`` allocates, in MB (10^6 bytes).

    On the CPU the profiler's allocation events are added up; memory that a library takes for
    itself (an FFT's scratch space, say) is not a tensor and only shows in the resident set.
    On the GPU it is the allocator's own peak.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - base) / MB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, size in changes:
        held += size
        peak = max(peak, held)
    return peak / MB


def available_bytes() -> int:
    """Memory that is free to use, of the machine or of the control group that holds us.

    Raises:
        OSError, ValueError, StopIteration: the system does not say.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        most = (group / "memory.max").read_text().strip()
        held = int((group / "memory.current").read_text())
    except OSError:
        return free
    return free if most == "max" else min(free, max(0, int(most) - held))


def reset_peak_rss() -> bool:
    """Start the resident set's peak afresh; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_rss_mb() -> float:
    """Peak resident set of this process in MB since the last reset."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MB
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB

"""What every rank does for a case, when the first one orders it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from flashmix import parallel
from flashmix.bench import memory
from flashmix.bench.actions import mixer_of, prepare, random_input
from flashmix.bench.case import BenchmarkCase
from flashmix.bench.ranks.traffic import SentBytes, derived_bytes
from flashmix.parallel.comm.ranks import Ranks
from flashmix.parallel.comm.shared_memory import STATS


class Subject:
    """A case across all ranks of a mesh; every method is called on all of them at once."""

    def __init__(self, case: BenchmarkCase, mesh: DeviceMesh) -> None:
        self.case, self.mesh = case, mesh
        self.prepared = prepare(case, mesh)

    def error(self) -> float | None:
        """Largest relative error against one device of output and input's gradient, of any rank.

        None where a rank cannot hold what one device would compute.
        """
        case, mesh = self.case, self.mesh
        torch.manual_seed(case.seed)
        module = mixer_of(case).to(case.device, getattr(torch, case.dtype))
        x, own = random_input(case), parallel.local_slice(case.seq_len, mesh)
        upstream = torch.randn_like(x)
        want = None
        with contextlib.suppress(torch.OutOfMemoryError):
            want = [t[:, own].clone() for t in _results(case, module, x, upstream)]
        if max(self._from_all(float(want is None))):
            return None
        assert want is not None
        parallel.shard_sequence(module, mesh)
        got = _results(case, module, x[:, own].clone(), upstream[:, own])
        pairs = zip(got, want, strict=True)
        errors = [(a.double() - b.double()).norm() / b.double().norm() for a, b in pairs]
        return max(self._from_all(max(error.item() for error in errors)))

    def traffic(self) -> dict[str, int | None]:
        """Bytes that leave the rank that sends most, counted and derived."""
        with SentBytes() as sent:
            self.prepared.memory_action()
        counted = max(self._from_all(float(sent.total(self.mesh.size()))))
        derived = derived_bytes(self.case, mixer_of(self.case), Ranks(self.mesh))
        return {"sent_bytes": round(counted), "derived_bytes": derived}

    def peaks(self) -> list[float]:
        """Peak memory of each rank in MB, beyond inputs and weights; what ranks share included."""
        STATS.requested = 0
        peak = memory.peak_mb(self.prepared.memory_action, self.case.device)
        return self._from_all(peak + STATS.requested / memory.MB)

    def seconds(self, calls: int) -> float:
        """Mean seconds of ``calls`` calls in a row, as the rank that takes longest waits."""
        self._from_all(0.0)  # none begins before all are here
        begun = time.perf_counter()
        for _ in range(calls):
            self.prepared.action()
        if self.case.device == "cuda":
            torch.cuda.synchronize()
        return max(self._from_all((time.perf_counter() - begun) / calls))

    def _from_all(self, value: float) -> list[float]:
        found = [torch.zeros(1, dtype=torch.float64) for _ in range(self.mesh.size())]
        mine = torch.tensor([value], dtype=torch.float64)
        dist.all_gather(found, mine, group=self.mesh.get_group())
        return [one.item() for one in found]


def _results(
    case: BenchmarkCase, module: Callable[[Tensor], Tensor], x: Tensor, up: Tensor
) -> list[Tensor]:
    """The output; where the case differentiates, the input's gradient too."""
    if case.direction == "forward":
        with torch.no_grad():
            return [module(x)]
    x = x.detach().requires_grad_()
    y = module(x)
    y.backward(up)
    assert x.grad is not None
    return [y.detach(), x.grad]

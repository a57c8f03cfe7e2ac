"""Bytes that leave a rank: counted at PyTorch's collectives, and derived by the strategies.

An all-reduce counts as the ring algorithm sends it, 2 (P - 1) / P times its payload.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from flashmix.bench.case import BenchmarkCase
from flashmix.mixers import Mixer
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.ranks import Ranks, even_split
from flashmix.parallel.comm.shared_memory import STATS
from flashmix.parallel.comm.volume import all_reduce_bytes, metadata_bytes
from flashmix.parallel.strategies import mixer_strategy
from flashmix.parallel.strategy import Call


class SentBytes(TorchDispatchMode):
    """Counts the bytes that this rank sends to others while it is active.

    Attributes:
        exchanged: by all-to-alls, point-to-point messages, and writes to other ranks' memory.
        reduced: payload of all-reduces.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exchanged, self.reduced = 0, 0

    def __enter__(self) -> Self:
        self._written = STATS.written
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.exchanged += STATS.written - self._written
        super().__exit__(*error)

    def total(self, ranks: int) -> int:
        """All bytes, an all-reduce across ``ranks`` counted as the ring algorithm sends it."""
        return self.exchanged + all_reduce_bytes(self.reduced, ranks)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        if name == "_c10d_functional::all_to_all_single":
            sizes = list(args[2])
            del sizes[dist.get_rank()]
            self.exchanged += sum(sizes) * args[0].element_size()
        elif name == "c10d::allreduce_":
            self.reduced += sum(added.numel() * added.element_size() for added in args[0])
        elif name == "c10d::send":
            self.exchanged += sum(sent.numel() * sent.element_size() for sent in args[0])
        elif name == "c10d::recv_":
            pass
        elif "c10d" in name and "wait_tensor" not in name and "_wrap_tensor" not in name:
            raise AssertionError(f"{name} is not counted")
        return func(*args, **(kwargs or {}))


def derived_bytes(case: BenchmarkCase, mixer: Mixer, ranks: Ranks) -> int | None:
    """What leaves the rank that sends most, by the mixer's strategy; None where it derives nothing.

    Args:
        case: its tokens are split over the ranks as evenly as can be, none of them padding.
        mixer: the mixer that is measured.
        ranks: the ranks.
    """
    layout = Layout(ranks, tuple(even_split(case.seq_len, ranks.size)), None)
    dtype, backward = getattr(torch, case.dtype), case.direction != "forward"
    call = Call(case.batch, case.dim, dtype, case.device, backward)
    strategy = mixer_strategy(mixer, ranks)
    sent = [strategy.bytes_sent(mixer, call, layout, rank) for rank in range(ranks.size)]
    if None in sent:
        return None
    total = max(count for count in sent if count is not None) + metadata_bytes(ranks.size)
    if backward:
        payloads = strategy.gradient_payloads(mixer, layout)
        total += sum(all_reduce_bytes(count * dtype.itemsize, ranks.size) for count in payloads)
    return total

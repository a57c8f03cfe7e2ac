"""Bytes that leave a rank: counted as PyTorch's collectives are called, and derived on paper.

An all-reduce counts as the ring algorithm sends it, 2 (P - 1) / P times its payload.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flashmix.bench.case import Case
from flashmix.mixers import (
    Attention,
    FNet,
    FourierAttention,
    LocalAttention,
    Spectral,
    TopKAttention,
)
from flashmix.ops.spectral.plan import MOST_MODES
from flashmix.parallel.comm.chunks import split_in_multiples
from flashmix.parallel.comm.layout import METADATA, Layout
from flashmix.parallel.comm.ranks import Ranks, even_split
from flashmix.parallel.comm.shared_memory import STATS, shared_memory
from flashmix.parallel.fnet.exchange import UNIT, exchange_dtype, kernels_support

INTEGER = 8
"""Bytes of a fact that the ranks tell each other, and of the word before them."""


class SentBytes(TorchDispatchMode):
    """Counts, while it is on, the bytes that this rank sends to others.

    Attributes:
        exchanged: by all-to-alls, from one rank to another, and into another's memory.
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
        """All bytes, reductions over ``ranks`` as a ring sends them."""
        return self.exchanged + ring(self.reduced, ranks)

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


def ring(payload: int, ranks: int) -> int:
    """What a rank sends of an all-reduce of ``payload`` bytes, to the nearest byte."""
    return round(2 * payload * (ranks - 1) / ranks)


def derived_bytes(case: Case, mixer: nn.Module, over: Ranks) -> int | None:
    """What leaves the rank that sends most, by docs/parallel.md; None where it derives nothing.

    Args:
        case: tokens spread across the ranks as evenly as can be, none of them padding.
        mixer: the one measured, before or after it was sharded.
        over: the ranks.
    """
    ranks = over.size
    layout = Layout(over, tuple(even_split(case.seq_len, ranks)), None)
    sent = [_mixing(case, mixer, layout, rank) for rank in range(ranks)]
    if None in sent:
        return None
    total = max(one for one in sent if one is not None) + INTEGER * (len(METADATA) + 1) * (
        ranks - 1
    )
    if case.direction != "forward":
        element = getattr(torch, case.dtype).itemsize
        total += sum(ring(count * element, ranks) for count in _summed_gradients(case, mixer))
    return total


def _summed_gradients(case: Case, mixer: nn.Module) -> list[int]:
    """Numbers in each all-reduce of parameters' gradients."""
    if not isinstance(mixer, Spectral):
        return [parameter.numel() for parameter in mixer.parameters()]
    if _few_modes(case, mixer):
        return []  # they come of the modes, which every rank has
    bias = 0 if mixer.bias is None else mixer.bias.numel()
    return [2 * mixer.modes * case.dim + bias]


def _few_modes(case: Case, mixer: nn.Module) -> bool:
    """Whether modes are summed across the ranks, not tokens exchanged for channels."""
    if not isinstance(mixer, Spectral) or mixer.causal or mixer.impl != "auto":
        return False
    assert case.ranks is not None
    kept = min(mixer.modes, case.seq_len // 2 + 1)
    return kept <= MOST_MODES and 2 * kept * case.ranks <= case.seq_len


def _mixing(case: Case, mixer: nn.Module, layout: Layout, rank: int) -> int | None:
    """What the mixing sends from ``rank``, without facts and gradients of parameters."""
    ranks, counts, batch, dim = layout.ranks.size, layout.counts, case.batch, case.dim
    element = getattr(torch, case.dtype).itemsize
    own, others = counts[rank], case.seq_len - counts[rank]
    calls = 1 if case.direction == "forward" else 2

    def there(columns: int, size: int) -> int:
        """Tokens for ``columns``."""
        return batch * own * (columns - even_split(columns, ranks)[rank]) * size

    def back(columns: int, size: int) -> int:
        """The columns' results to where their tokens are."""
        return batch * others * even_split(columns, ranks)[rank] * size

    if isinstance(mixer, FNet):
        return calls * _fnet(case, layout, rank)
    if isinstance(mixer, Spectral):
        if _few_modes(case, mixer):
            kept = min(mixer.modes, case.seq_len // 2 + 1)
            return calls * ring(8 * batch * kept * dim, ranks)
        return calls * (there(dim, element) + back(dim, element))
    if isinstance(mixer, LocalAttention) and mixer.window // 2 <= min(counts):
        return _halo(case, mixer, rank, element)
    if not isinstance(mixer, Attention | TopKAttention | LocalAttention | FourierAttention):
        return None
    pairs, width = batch * case.num_heads, dim // case.num_heads
    if isinstance(mixer, Attention) and pairs < ranks:
        block = 2 * batch * max(counts) * dim
        forward = block * (ranks - 1) * element
        return forward if calls == 1 else 2 * forward + block * ranks * max(4, element)
    inputs = 1 if isinstance(mixer, FourierAttention) else 3
    share = even_split(pairs, ranks)[rank]
    given, taken = own * (pairs - share) * width * element, others * share * width * element
    forward, backward = inputs * given + taken, given + inputs * taken
    return forward if calls == 1 else forward + backward


def _fnet(case: Case, layout: Layout, rank: int) -> int:
    """Two numbers for each pair of columns, there and back, by the road that it takes."""
    dtype = getattr(torch, case.dtype)
    shape = (case.batch, layout.counts[0], case.dim)
    tokens = torch.empty(1, dtype=dtype, device=case.device).expand(shape)
    ranks, own = len(layout.counts), layout.counts[rank]
    others = layout.total - own
    if not kernels_support(tokens, layout):
        shares = even_split(case.dim // 2 + 1, ranks)
        there, back = own * 2 * (sum(shares) - shares[rank]), others * 2 * shares[rank]
        return case.batch * (there + back) * exchange_dtype(dtype).itemsize
    shares = split_in_multiples((case.dim + 1) // 2, ranks, UNIT)
    # The first rank's rows are a unit longer, if only on the way back where memory is shared.
    longer = [0 if rank or case.dim % 2 else UNIT for rank in range(ranks)]
    there = own * 2 * (sum(shares) - shares[rank])
    if shared_memory(layout.ranks) is None:
        there += own * (sum(longer) - longer[rank])
    back = others * (2 * shares[rank] + longer[rank])
    return case.batch * (there + back) * dtype.itemsize


def _halo(case: Case, mixer: LocalAttention, rank: int, element: int) -> int:
    """Keys and values beyond the ends of a slice: to the neighbours, their gradients back."""
    assert case.ranks is not None
    halo = 2 * case.batch * case.dim * element * (mixer.window // 2)
    before, after = rank > 0, rank < case.ranks - 1
    forward = halo * (after + (before and not mixer.causal))
    backward = halo * (before + (after and not mixer.causal))
    return forward if case.direction == "forward" else forward + backward

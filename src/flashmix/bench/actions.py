"""What a case runs: a function to be timed, built of the case's own fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashmix.bench.case import COPY, Case
from flashmix.mixers import parse_mixer


@dataclass(frozen=True)
class Prepared:
    """The function to time, and the parameters of what it runs."""

    action: Callable[[], object]
    params: int


def prepare(case: Case) -> Prepared:
    """Build inputs and mixer of ``case`` from its seed."""
    torch.manual_seed(case.seed)
    shape = (case.batch, case.seq_len, case.dim)
    x = torch.randn(shape, device=case.device, dtype=getattr(torch, case.dtype))
    if case.mixer == COPY:
        return Prepared(_copy(x, case.direction == "forward_backward"), 0)
    mixer = parse_mixer(case.mixer).build(case.dim, num_heads=case.num_heads, impl=case.impl)
    mixer = mixer.to(device=x.device, dtype=x.dtype)
    params = sum(p.numel() for p in mixer.parameters())
    if case.direction == "forward":
        return Prepared(_forward(mixer.eval(), x), params)
    return Prepared(_forward_backward(mixer.train(), x), params)


def _copy(x: Tensor, twice: bool) -> Callable[[], object]:
    """Read and write [B, N, D] once; twice where a backward reads and writes the gradient too."""
    target = torch.empty_like(x)

    def copy() -> None:
        target.copy_(x)
        if twice:
            target.copy_(x)

    return copy


def _forward(mixer: nn.Module, x: Tensor) -> Callable[[], object]:
    def forward() -> Tensor:
        with torch.no_grad():
            y: Tensor = mixer(x)
        return y

    return forward


def _forward_backward(mixer: nn.Module, x: Tensor) -> Callable[[], object]:
    x.requires_grad_()
    upstream = torch.randn_like(x)

    def forward_backward() -> None:
        mixer(x).backward(upstream)
        # Gradients left for the next call to free would count as memory that it started with.
        x.grad = None
        mixer.zero_grad(set_to_none=True)

    return forward_backward

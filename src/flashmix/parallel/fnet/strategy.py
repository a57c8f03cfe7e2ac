"""The strategy of FNet mixing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flashmix.errors import ImplementationError
from flashmix.mixers import FNet
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.shared_memory import shared_memory
from flashmix.parallel.fnet.exchange import fnet
from flashmix.parallel.fnet.plan import fft_bytes, kernel_bytes, kernels_support
from flashmix.parallel.strategy import Call, MixerStrategy


class FNetStrategy(MixerStrategy[FNet]):
    """Tokens are exchanged for columns of the half-spectrum, and results back."""

    @classmethod
    def check_supported(cls, module: Any, base: type[nn.Module], where: str) -> None:
        super().check_supported(module, base, where)
        if module.impl not in ("auto", "torch"):
            raise ImplementationError(
                f"{where}: impl={module.impl!r} does not support a sequence across ranks; use "
                "impl='auto'"
            )

    def mix(self, mixer: FNet, inputs: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        (x,) = inputs
        return fnet(x, self.layout(x, mask, 1), mixer.norm)

    def bytes_sent(self, mixer: FNet, call: Call, layout: Layout, rank: int) -> int | None:
        size = call.batch, call.dim, call.dtype, layout, rank
        shape = (call.batch, layout.counts[0], call.dim)
        tokens = torch.empty(1, dtype=call.dtype, device=call.device).expand(shape)
        if not kernels_support(tokens, layout):
            return call.passes * fft_bytes(*size)
        shared = shared_memory(layout.ranks) is not None
        return call.passes * kernel_bytes(*size, shared=shared)

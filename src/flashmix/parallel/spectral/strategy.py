"""The strategy of spectral filtering."""

from __future__ import annotations

from torch import Tensor

from flashmix.mixers import Spectral
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.comm.volume import all_reduce_bytes
from flashmix.parallel.spectral.channels import channel_exchange_bytes, filter_by_channels
from flashmix.parallel.spectral.dispatch import filter_by_modes
from flashmix.parallel.spectral.modes import few_modes, modes_in_use
from flashmix.parallel.strategy import Call, MixerStrategy


class SpectralStrategy(MixerStrategy[Spectral]):
    """A sum of the modes across the ranks where they are few, else an exchange of channels.

    Causal filters, and those with an explicit ``impl``, exchange channels.
    """

    sums_gradients = True
    replaces = ("mix_whole", "apply_filter")

    def mix(self, mixer: Spectral, inputs: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        (x,) = inputs
        layout, whole = self.layout(x, mask, 1), self.sum_gradients
        if _sums_modes(mixer, layout):
            return filter_by_modes(x, mixer.filter(), mixer.bias, mixer.unitary, layout, whole)

        def run(columns: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return mixer.apply_filter(columns, weight, bias, layout.mask)

        return filter_by_channels(run, x, mixer.filter(), mixer.bias, layout, whole)

    def bytes_sent(self, mixer: Spectral, call: Call, layout: Layout, rank: int) -> int | None:
        if _sums_modes(mixer, layout):
            modes = modes_in_use(mixer.modes, layout.total)
            payload = 2 * max(4, call.dtype.itemsize) * call.batch * modes * call.dim
            return call.passes * all_reduce_bytes(payload, layout.ranks.size)
        token = call.batch * call.dtype.itemsize
        return call.passes * channel_exchange_bytes(layout, rank, call.dim, token)

    def gradient_payloads(self, mixer: Spectral, layout: Layout) -> list[int]:
        if _sums_modes(mixer, layout):
            return []  # every rank computes the full gradients from the modes
        bias = 0 if mixer.bias is None else mixer.bias.numel()
        return [2 * mixer.modes * mixer.dim + bias]


def _sums_modes(mixer: Spectral, layout: Layout) -> bool:
    return mixer.impl == "auto" and not mixer.causal and few_modes(mixer.modes, layout)

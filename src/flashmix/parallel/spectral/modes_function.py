"""Few modes across ranks as one node of the graph: two products, two kernels and a sum each way.

The spectrum of the input, which all ranks have once it is summed, is kept for the backward; the
input is not. The spectrum is an output too, so that second derivatives find their way through it.

Shapes: B batch, n own tokens, D channels, M learned modes, K modes in use; spectra are real parts
above imaginary ones, float32 [B, 2 K, D].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashmix.parallel.comm.collectives import all_sum, reduce_backward
from flashmix.parallel.comm.layout import Layout
from flashmix.parallel.spectral.modes import Synthesise, apply_filter, group_by_length
from flashmix.parallel.spectral.modes_triton import (
    Filter,
    Gradients,
    SlicePosition,
    analyse,
    only_gradients,
    synthesise,
)


class _ByModes(torch.autograd.Function):
    """The filtered slice, and the spectrum of the input across all ranks, [B, 2 K, D]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        unitary: bool,
        layout: Layout,
        whole: bool,
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        batch, count, dim = x.shape
        length = layout.total
        kept = min(weight.shape[0], length // 2 + 1)
        place = SlicePosition(batch, layout.own.start, count, dim, length, kept)
        spectrum = layout.ranks.all_reduce_(analyse(x, place))
        by = Filter(weight, bias, unitary)
        y = synthesise(spectrum, x if unitary else None, by, place, x.dtype)
        ctx.save_for_backward(weight, bias, spectrum)
        ctx.set_materialize_grads(False)
        ctx.unitary, ctx.layout, ctx.whole = unitary, layout, whole
        ctx.place, ctx.dtype = place, x.dtype
        return y, spectrum

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_spectrum: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or grad is None or grad_spectrum is not None:
            return _differentiable(ctx, grad, grad_spectrum)
        return *_gradients(ctx, grad.contiguous()), None, None, None


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, bias, spectrum = ctx.saved_tensors
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    upstream = analyse(grad, ctx.place)
    gradients = None
    if wants_weight or wants_bias:
        own = upstream if ctx.whole else upstream.clone()
        grad_bias = torch.empty_like(bias) if wants_bias else None
        gradients = Gradients(spectrum, own, torch.empty_like(weight), grad_bias)
    if wants_x or ctx.whole:
        ctx.layout.ranks.all_reduce_(upstream)
    back = Filter(weight, None, ctx.unitary, conjugate=True)
    grad_x = None
    if wants_x:
        base = grad if ctx.unitary else None
        grad_x = synthesise(upstream, base, back, ctx.place, ctx.dtype, gradients)
    elif gradients is not None:
        only_gradients(upstream, back, ctx.place, ctx.dtype, gradients)
    if gradients is None:
        return grad_x, None, None
    return grad_x, gradients.weight if wants_weight else None, gradients.bias


def _differentiable(
    ctx: Any, grad: Tensor | None, grad_spectrum: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The backward by functions that have gradients themselves, and of a spectrum's gradient."""
    weight, bias, spectrum = ctx.saved_tensors
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    layout, ranks, whole = ctx.layout, ctx.layout.ranks, ctx.whole
    graph = torch.is_grad_enabled()
    parts = list(group_by_length(layout, weight.shape[0]))
    count, dtype = ctx.place.tokens, ctx.dtype

    def found_by(grad: Tensor) -> list[Tensor | None]:
        """Gradients of the spectrum [B, K, D, 2], W and b."""
        with torch.enable_grad():
            modes = _pairs(spectrum)
            back = apply_filter(modes, weight.float(), bias, ctx.unitary, parts)
            back = reduce_backward(back, ranks) if whole else back
            y = Synthesise.apply(back, None, parts, count, dtype)
            asked = {0: modes}
            asked |= {1: weight} if wants_weight else {}
            asked |= {2: bias} if wants_bias else {}
            got = torch.autograd.grad(y, list(asked.values()), grad, create_graph=graph)
        named = dict(zip(asked, got, strict=True))
        return [named.get(place) for place in range(3)]

    grads = [None, None, None] if grad is None else found_by(grad)
    if not wants_x:
        return None, *grads[1:], None, None, None
    modes = grads[0]
    if grad_spectrum is not None:
        modes = _pairs(grad_spectrum) if modes is None else modes + _pairs(grad_spectrum)
    if modes is None:
        return (None,) * 6
    modes = reduce_backward(modes, ranks) if whole else all_sum(modes, ranks)
    base = grad if ctx.unitary else None
    grad_x = Synthesise.apply(modes, base, parts, count, dtype)
    return grad_x, *grads[1:], None, None, None


def _pairs(spectrum: Tensor) -> Tensor:
    """As numbers beside their imaginary parts, [B, K, D, 2]."""
    return torch.stack(spectrum.unflatten(1, (2, -1)).unbind(1), -1)


def filter_by_modes(
    x: Tensor, weight: Tensor, bias: Tensor | None, unitary: bool, layout: Layout, whole: bool
) -> Tensor:
    """As :func:`~flashmix.parallel.spectral.modes.filter_by_modes`, by the kernels."""
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    y: Tensor = _ByModes.apply(x, weight, bias, unitary, layout, whole)[0]
    return y

"""Which pictures a mixing layer has, and the captions that state what was measured.

Shapes: B batch, N tokens, D width, H heads, F frequencies, M modes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flashmix.errors import ArgumentError
from flashmix.mixers import LocalAttention, Mixer, TopKAttention
from flashmix.visualize import drawing, measures
from flashmix.visualize.frequencies import filter_picture, gains_picture
from flashmix.visualize.layers import Layer
from flashmix.visualize.matrices import (
    DIRECTIONS,
    impulse_response,
    influence,
)
from flashmix.visualize.picture import Picture, Shown, percent, picture, spread

CHANNELS = 4
"""Channels whose impulse responses are shown."""

ALIKE = 1e-5
"""Relative difference up to which channels count as alike: a few float32 roundings."""

MOST_INFLUENCE_TOKENS = 256
"""Influence and impulse responses are taken over the first so many tokens: they cost N forwards."""


def layer_pictures(layer: Layer, shown: Shown) -> Iterator[Picture]:
    """Every picture of one layer, those of a hybrid's parts included."""
    mixer = layer.mixer
    if layer.weights is not None:
        yield _weights(layer, layer.weights, shown)
    if "gains" in layer.pictures:
        yield gains_picture(layer, shown)
    if mixer is not None and "filter" in layer.pictures:
        yield filter_picture(layer, mixer, shown)
    if mixer is not None and "impulse" in layer.pictures:
        yield _impulse(layer, mixer, shown)
    if layer.mix is not None:
        yield _influence(layer, layer.mix, shown)
    for part in layer.parts:
        yield from layer_pictures(part, replace(shown, title=part.title))


def _reach(mixer: Mixer | None, n: int) -> int:
    """Tokens to each side that captions speak of: the window's, or an eighth of the sequence."""
    if isinstance(mixer, LocalAttention) and max(mixer.reach) < n - 1:
        return max(mixer.reach)
    return max(1, n // 8)


def _head_names(heads: int) -> list[str]:
    return [f"head {i}" for i in range(1, heads + 1)]


def _weights(layer: Layer, weights: Tensor, shown: Shown) -> Picture:
    """Who attends to whom; for Fourier attention, the circulant matrix of each head."""
    heads, n = weights.shape[:2]
    drawn = weights[: drawing.MOST_PANELS]
    cut = f" The first {len(drawn)} of {heads} heads are shown." if len(drawn) < heads else ""
    reach = _reach(layer.mixer, n)
    near = measures.share_within(weights.abs(), reach)
    even = measures.evenly_spread_within(n, reach)
    measured = {"share_within": float(near.mean()), "share_within_if_even": even}
    tail = (
        f"{percent(near.mean())} lies within {reach} tokens to each side "
        f"(evenly spread: {percent(even)}).{drawing.averaged(n, n, len(drawn))}{cut}"
    )
    if "gains" in layer.pictures:
        what, title = "factor", "The filter of each head"
        caption = (
            f"What each head multiplies its values by, for {shown.one}. "
            f"Each matrix is circulant: entry [i, j] depends on i - j. Of the absolute values, "
        )
    else:
        entropy = measures.entropy_bits(weights).mean(-1)
        measured |= {
            "entropy_bits": float(entropy.mean()),
            "entropy_bits_if_even": math.log2(n),
            "nonzero_per_row": float((weights > 0).sum(-1).double().mean()),
        }
        what, title = "attention weight", "Who attends to whom"
        caption = (
            f"Attention weights, rows summing to one, for {shown.one}. "
            f"{_per_row(layer.mixer, weights)}Mean entropy of a row by head: "
            f"{spread(entropy)} bits (all tokens alike: {math.log2(n):.2f}). Of the weight, "
        )
    figure = drawing.heatmaps(
        drawn,
        _head_names(len(drawn)),
        what=what,
        rows=drawing.Axis(title="output token", downwards=True, labels=shown.labels),
        columns=drawing.Axis(title="input token", labels=shown.labels),
    )
    return picture(
        "weights", title, layer, shown, caption + tail, measured, figure, wide=len(drawn) > 1
    )


def weights_side_by_side(layers: Sequence[Layer], names: Sequence[str], shown: Shown) -> Picture:
    """The first head's weights of several mixers, on one colour scale."""
    weights = []
    for name, layer in zip(names, layers, strict=True):
        if layer.weights is None or "gains" in layer.pictures:
            raise ArgumentError(f"{name} has no attention weights to compare")
        weights.append(layer.weights[0])
    together = torch.stack(weights)
    n = together.shape[-1]
    count = (together > 0).sum(-1)
    entropy = measures.entropy_bits(together).mean(-1)
    measured = {}
    sentences = []
    for name, number, bits in zip(names, count, entropy.tolist(), strict=True):
        measured[f"{name} entropy_bits"] = bits
        measured[f"{name} nonzero_per_row"] = float(number.double().mean())
        sentences.append(f"{name}, {spread(number, '{:.0f}')} and {bits:.2f} bits")
    caption = (
        f"Attention weights of one head, rows summing to one, for {shown.one}. Weights above zero "
        f"in a row, and a row's mean entropy (all tokens alike: {math.log2(n):.2f} bits): "
        f"{'; '.join(sentences)}.{drawing.averaged(n, n, len(layers))}"
    )
    figure = drawing.heatmaps(together, names, what="attention weight")
    return picture("weights", "Who attends to whom", None, shown, caption, measured, figure)


def _per_row(mixer: Mixer | None, weights: Tensor) -> str:
    """How many tokens a row weighs, where the mixer sets that."""
    if not isinstance(mixer, LocalAttention | TopKAttention):
        return ""
    count = (weights > 0).sum(-1)
    low, high = int(count.min()), int(count.max())
    return f"A row has {low if low == high else f'{low} to {high}'} weights above zero. "


def _impulse(layer: Layer, mixer: Mixer, shown: Shown) -> Picture:
    """What unit impulses do, in a few channels."""
    n = min(layer.x.shape[1], MOST_INFLUENCE_TOKENS)
    count = min(CHANNELS, mixer.dim)
    channels = [i * (mixer.dim - 1) // max(1, count - 1) for i in range(count)]
    responses = [impulse_response(mixer, n, channel) for channel in channels]
    drawn = torch.stack([r[..., c] for r, c in zip(responses, channels, strict=True)]).cpu()
    energy = torch.stack([r.square().sum(-1) for r in responses]).double().cpu()
    own = float(drawn.double().square().sum() / energy.sum())
    deviation = float(measures.circulant_deviation(drawn).max())
    reach = _reach(mixer, n)
    near = float(measures.share_within(energy.sum(0), reach))
    even = measures.evenly_spread_within(n, reach)
    measured = {
        "circulant_deviation": deviation,
        "energy_in_own_channel": own,
        "energy_within": near,
        "energy_within_if_even": even,
    }
    if getattr(mixer, "causal", False):
        measured["energy_ahead"] = float(measures.share_ahead(energy.sum(0)))
    alike = bool((drawn - drawn[:1]).abs().max() <= ALIKE * drawn.abs().max())
    if alike:
        drawn, channels = drawn[:1], channels[:1]
    caption = (
        f"Output token i, same channel, for a unit impulse at input token j (N = {n}), in "
        f"{count} of {mixer.dim} channels{', which are all alike' if alike else ''}; the mixer is "
        "linear but for a bias, so this holds for any input. "
        f"Of the response's energy, {percent(own)} stays in the impulse's channel and "
        f"{percent(near)} lies within {reach} tokens to each side (evenly spread: "
        f"{percent(even)}). Relative distance from a circulant matrix, which treats all "
        f"tokens alike: {deviation:.2g}.{drawing.averaged(n, n, len(drawn))}"
    )
    if "energy_ahead" in measured:
        caption += f" Energy at tokens before the impulse: {measured['energy_ahead']:.2g}."
    figure = drawing.heatmaps(
        drawn, [f"channel {c}" for c in channels], what="response", scale="signed"
    )
    return picture(
        "impulse", "Response to impulses", layer, shown, caption, measured, figure, wide=not alike
    )


def _influence(layer: Layer, mix: Callable[[Tensor], Tensor], shown: Shown) -> Picture:
    """The norm of the Jacobian's blocks: any mixer, every path from input to output."""
    x = layer.x[0, :MOST_INFLUENCE_TOKENS]
    n, dim = x.shape
    cut = f", its first {n} tokens alone" if n < layer.x.shape[1] else ""
    labels = shown.labels and shown.labels[:n]
    matrix = influence(mix, x)
    reach = _reach(layer.mixer, n)
    energy = matrix.square()
    near = float(measures.share_within(energy, reach))
    even = measures.evenly_spread_within(n, reach)
    own = float(energy.diagonal().sum() / energy.sum())
    ahead = float(measures.share_ahead(energy))
    measured = {
        "energy_within": near,
        "energy_within_if_even": even,
        "energy_on_diagonal": own,
        "energy_ahead": ahead,
    }
    exact = (
        "exact"
        if dim <= DIRECTIONS
        else f"estimated in {DIRECTIONS} random orthogonal directions of {dim}"
    )
    caption = (
        f"Frobenius norm of d y[i] / d x[j], a D x D block of the Jacobian ({exact}), for "
        f"{shown.one}{cut}. Of its square, {percent(own)} lies on the "
        f"diagonal, {percent(near)} within {reach} tokens to each side (evenly spread: "
        f"{percent(even)}), {percent(ahead)} on later tokens.{drawing.averaged(n, n, 1)}"
    )
    figure = drawing.heatmaps(
        matrix[None],
        [""],
        what="norm of d y[i] / d x[j]",
        rows=drawing.Axis(title="output token i", downwards=True, labels=labels),
        columns=drawing.Axis(title="input token j", labels=labels),
    )
    return picture(
        "influence", "What depends on what", layer, shown, caption, measured, figure, wide=False
    )

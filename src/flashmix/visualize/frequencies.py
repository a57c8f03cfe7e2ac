"""Pictures over frequencies: filters, weights of frequencies, FFT magnitude of real inputs.

Shapes: B batch, N tokens, D width, H heads, F frequencies, M modes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from flashmix.ops import fourier_weights
from flashmix.visualize import drawing, measures, theme
from flashmix.visualize.chart import altair
from flashmix.visualize.layers import Layer
from flashmix.visualize.picture import Picture, Shown, percent, picture, spread

FILTER_WIDTH, FILTER_HEIGHT = drawing.WIDTH // 2 - 40, 320


def filter_picture(layer: Layer, mixer: Any, shown: Shown) -> Picture:
    """The learned filter's magnitude and phase, by mode and channel."""
    alt = altair()
    with torch.no_grad():
        real, imaginary = mixer.filter().detach().double().cpu().unbind(-1)
    magnitude, phase = torch.hypot(real, imaginary), torch.atan2(imaginary, real)
    modes, dim = magnitude.shape
    mode = torch.arange(modes, dtype=torch.float64)[:, None]
    order = ((magnitude * mode).sum(0) / magnitude.sum(0).clamp(min=1e-12)).argsort(stable=True)
    tenth = max(1, round(0.1 * modes))
    low, high = float(magnitude[:tenth].mean()), float(magnitude[-tenth:].mean())
    measured = {
        "magnitude_lowest_tenth": low,
        "magnitude_highest_tenth": high,
        "magnitude_std": float(magnitude.std(correction=0)),
        "phase_rms": float(phase.square().mean().sqrt()),
    }
    as_started = bool((magnitude == 1).all()) and bool((phase == 0).all())
    state = "W = 1 throughout: nothing has been learned. " if as_started else ""
    caption = (
        f"{state}Modes 0 to {modes - 1} of {dim} channels, which are sorted by the mean mode of "
        f"their magnitude. Mean |W|: {low:.3f} in the lowest tenth of modes, {high:.3f} in the "
        f"highest; standard deviation {measured['magnitude_std']:.3f}; rms phase "
        f"{measured['phase_rms']:.3f} rad.{drawing.averaged(dim, modes, 1)}"
    )
    left = drawing.heatmaps(
        magnitude.T[order][None],
        [""],
        what="|W|",
        rows=drawing.Axis(title="channel, sorted", downwards=True),
        columns=drawing.Axis(title="mode k"),
        scale="sequential",
        width=FILTER_WIDTH,
        height=FILTER_HEIGHT,
    )
    # Angles have no mean of their own; the phase of a block is that of its mean W.
    high, wide = drawing.block_size(dim, 1), drawing.block_size(modes, 1)
    x, y = (drawing.block_means(part.T[order], high, wide) for part in (real, imaginary))
    right = drawing.heatmaps(
        torch.atan2(y, x)[None],
        [""],
        what="phase (rad)",
        rows=drawing.Axis(title="channel, sorted", step=high, downwards=True),
        columns=drawing.Axis(title="mode k", step=wide),
        scale="cyclic",
        top=math.pi,
        data_name="phases",
        width=FILTER_WIDTH,
        height=FILTER_HEIGHT,
    )
    chart = alt.hconcat(
        left.chart.properties(title=_subtitle("magnitude")),
        right.chart.properties(title=_subtitle("phase")),
    )
    figure = drawing.Drawing(chart.resolve_scale(color="independent"), left.data | right.data)
    return picture("filter", "The filter", layer, shown, caption, measured, figure)


def _subtitle(text: str) -> dict[str, Any]:
    return {"text": text, "fontSize": 12, "fontWeight": "normal", "offset": 6}


def gains_picture(layer: Layer, shown: Shown) -> Picture:
    """By which each head multiplies its frequencies."""
    n = layer.x.shape[1]
    with torch.no_grad():
        share = fourier_weights(layer.values).double().cpu()
    mean = share.mean(0)
    entropy = torch.special.entr(share).sum(-1).mean(0) / math.log(2)
    frequencies = mean.shape[-1]
    measured = {
        "weight_of_mean": float(mean[:, 0].mean()),
        "entropy_bits": float(entropy.mean()),
        "entropy_bits_if_even": math.log2(frequencies),
    }
    caption = (
        f"Each head weighs {frequencies} frequencies; the weights sum to one. Mean over "
        f"{shown.all}. The mean of the sequence (frequency 0) gets {spread(100 * mean[:, 0])} % "
        f"by head. Entropy by head: {spread(entropy)} bits (all frequencies alike: "
        f"{math.log2(frequencies):.2f}).{drawing.averaged(len(mean), frequencies, 1)}"
    )
    heads = len(mean)
    figure = drawing.heatmaps(
        mean[None],
        [""],
        what="weight of a frequency",
        rows=drawing.Axis(title="head", downwards=True, labels=[str(i + 1) for i in range(heads)]),
        columns=drawing.frequency_axis(n),
        width=drawing.WIDTH - 80,
        height=max(96, 24 * heads),
    )
    return picture("gains", "Weights over frequencies", layer, shown, caption, measured, figure)


def spectrum_picture(layers: Sequence[Layer], shown: Shown) -> Picture:
    """FFT magnitude along tokens of what enters and leaves each layer."""
    n = layers[0].x.shape[1]
    energies = torch.stack(
        [
            torch.stack([measures.energy_by_frequency(t.cpu()).mean(0) for t in (layer.x, layer.y)])
            for layer in layers
        ]
    )
    share, noise = measures.lowest_tenth(energies, n)
    own_mean = energies[..., 0] / energies.sum(-1)
    measured = {"white_noise": noise}
    sentences = []
    for layer, low, mean in zip(layers, share.tolist(), own_mean.tolist(), strict=True):
        where = f"{layer.name}, " if layer.name else ""
        key = layer.name.replace(" ", "_") + "_" if layer.name else ""
        measured |= {f"{key}entering": low[0], f"{key}leaving": low[1]}
        sentences.append(
            f"{where}entering {percent(low[0])} ({percent(mean[0])} in the mean alone), "
            f"leaving {percent(low[1])} ({percent(mean[1])})"
        )
    caption = (
        f"FFT along tokens, root mean square over {shown.all} and over channels. Share of the "
        f"energy in the lowest tenth of frequencies, of which white noise has {percent(noise)}: "
        f"{'; '.join(sentences)}. {shown.leaving}".strip()
    )
    width = layers[0].x.shape[-1]
    magnitudes = (energies / measures.counted(n) / width).sqrt()
    if bool((magnitudes < drawing.FAINTEST * magnitudes.max()).any()):
        caption += f" Magnitudes below {percent(drawing.FAINTEST)} of the largest are not drawn."
    figure = drawing.spectra(
        magnitudes,
        n,
        [layer.name for layer in layers],
        ["enters", "leaves"],
        [theme.MUTED, theme.tone(shown.tone or shown.title)],
    )
    return picture(
        "spectrum", "FFT magnitude before and after", None, shown, caption, measured, figure
    )


def heads_pictures(layers: Sequence[Layer], shown: Shown) -> Iterator[Picture]:
    """FFT magnitude of each head's values against white noise, for layers with heads.

    Layers with different numbers of heads are drawn apart.
    """
    by_heads: dict[int, list[Layer]] = {}
    for layer in layers:
        if (heads := layer.values.shape[1]) > 1:
            by_heads.setdefault(heads, []).append(layer)
    for heads, group in by_heads.items():
        yield _heads(group, f"heads-{heads}" if len(by_heads) > 1 else "heads", shown)


def _heads(layers: Sequence[Layer], name: str, shown: Shown) -> Picture:
    n, heads = layers[0].x.shape[1], layers[0].values.shape[1]
    energy = torch.stack(
        [measures.energy_by_frequency(layer.values.cpu()).mean(0) for layer in layers]
    )
    share, noise = measures.lowest_tenth(energy, n)
    measured = {
        "white_noise": noise,
        "lowest": float(share.min()),
        "highest": float(share.max()),
    }
    by_layer = "; ".join(
        f"{f'{layer.name}: ' if layer.name else ''}{spread(100 * part, '{:.3g}')} %"
        for layer, part in zip(layers, share, strict=True)
    )
    caption = (
        f"FFT along tokens of what each head mixes (its values), energy over {shown.all}, against "
        f"white noise of the same energy: 0 is white noise, 1 is ten times as much; the colours "
        f"end at the largest value beyond frequency 0. Share in the lowest tenth of frequencies "
        f"by head, {by_layer}; white noise has {percent(noise)}."
        f"{drawing.averaged(heads, n // 2 + 1, len(layers))}"
    )
    against_noise = energy / energy.sum(-1, keepdim=True) * n / measures.counted(n)
    ratio = against_noise.clamp(min=1e-6).log10()
    figure = drawing.heatmaps(
        ratio,
        [layer.name for layer in layers],
        what="log10 of energy over white noise's",
        scale="ratio",
        top=float(ratio[..., 1:].abs().max()) if n > 1 else None,
        rows=drawing.Axis(title="head", downwards=True, labels=[str(i + 1) for i in range(heads)]),
        columns=drawing.frequency_axis(n),
        width=drawing.WIDTH - 80 if len(layers) == 1 else None,
        height=max(96, 20 * heads),
    )
    return picture(name, "FFT magnitude by head", None, shown, caption, measured, figure)

"""Colours: one for one mixer, told apart by colour-blind readers, visible on both backgrounds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flashmix.bench.baselines import BASELINES
from flashmix.ops import OPERATORS
from flashmix.visualize import theme

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
MODES = ("light", "dark")
JUST_NOTICEABLE = 0.02  # in OKLab


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    to_cone = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_cone) @ rgb.clip(0, 1))


def contrast(one: str, other: str) -> float:
    light = [float(np.dot([0.2126, 0.7152, 0.0722], linear(colour))) for colour in (one, other)]
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_mixers_are_told_apart(mode, sight):
    for one, other in itertools.combinations(theme.mixers().values(), 2):
        a, b = (oklab(SIGHT[sight] @ linear(getattr(x, mode))) for x in (one, other))
        assert np.linalg.norm(a - b) > 3 * JUST_NOTICEABLE, (one, other)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tone", [*theme.mixers().values(), theme.COPY])
def test_marks_stand_out_from_the_page(mode, tone):
    assert contrast(getattr(tone, mode), getattr(theme.PAPER, mode)) >= 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tone", [theme.INK, theme.MUTED])
def test_text_can_be_read(mode, tone):
    assert contrast(getattr(tone, mode), getattr(theme.PAPER, mode)) >= 4.5


@pytest.mark.parametrize(
    ("label", "same_as"),
    [
        ("local(window=16)", "local"),
        ("topk(topk=32)", "topk"),
        ("attention", "attention (fused)"),
        ("attention (naive), bfloat16", "attention (naive)"),
        ("attention (naive), checkpointed", "attention (naive)"),
        ("fnet*10,attention*2", "fnet,attention"),
        ("fourier, bfloat16", "fourier"),
        ("spectral+local(window=16)", "spectral+local"),
    ],
)
def test_a_variant_wears_the_colour_of_its_mixer(label, same_as):
    assert theme.tone(label) == theme.tone(same_as)


def test_what_shares_a_colour_differs_in_its_strokes():
    labels = ["attention (naive)", "attention (naive), checkpointed", "attention (naive), bfloat16"]
    assert len({tuple(theme.dash(label)) for label in labels}) == 3


def test_an_unknown_name_has_one_colour_for_good():
    assert theme.tone("somebody's mixer") == theme.tone("somebody's mixer")
    assert theme.tone("somebody's mixer") in theme.mixers().values()


def test_every_colour_of_a_chart_has_a_dark_counterpart():
    lights = [*(t.light for t in theme.mixers().values()), theme.COPY.light, theme.INK.light]
    assert len(set(lights)) == len(lights)
    spec = {"config": theme.config(), "scale": {"range": lights}, "title": "fnet"}
    dark = theme.in_mode(spec, "dark")
    assert not set(dark["scale"]["range"]) & set(lights)
    assert dark["title"] == "fnet"
    assert spec["config"]["background"] == theme.PAPER.light
    assert theme.in_mode(spec, "light") == spec


@pytest.mark.parametrize("op", BASELINES)
def test_what_a_chart_of_an_op_compares_is_told_apart(op):
    names = [*BASELINES[op], *(one.name for one in OPERATORS[op].implementations)]
    tones = [theme.tone(name) for name in names if name != "reference"]
    assert len(set(tones)) == len(tones)

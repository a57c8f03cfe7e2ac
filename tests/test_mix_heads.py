"""A mixer's mixing alone, between projections that another module holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers import assert_close, each_mixer, make_mixer, randn, right_padding


def heads(seed: int, device: str = "cpu"):
    """[B, H, N, dh] = [2, 2, 9, 4], as a projection of [B, N, D] gives it."""
    return randn(2, 9, 8, seed=seed, device=device).unflatten(-1, (2, 4)).transpose(1, 2)


def by_hand(mixer, q, k, v, mask):
    """The mixing of a mixer that is no hybrid, through its forward pass with its own projections
    set to pass q, k and v on."""
    twin = copy.deepcopy(mixer)
    if mixer.reads == "qkv":
        twin.qkv, twin.out = Given(torch.cat((q, k, v), 1)), nn.Identity()
    elif mixer.reads == "v":
        twin.value, twin.out = Given(v), nn.Identity()
    tokens = q if mixer.reads == "qkv" else v
    return twin(tokens.transpose(1, 2).flatten(2), mask)


class Given(nn.Module):
    """A projection whose output is given: [B, all heads, N, dh] as [B, N, D of all]."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, _):
        return self.parts.transpose(1, 2).flatten(2)


@each_mixer
@pytest.mark.parametrize("masked", [False, True])
def test_mixes_heads_as_the_whole_mixer_does_between_its_projections(text, masked, device):
    if "hybrid" in text:
        pytest.skip("its parts are tested one by one, and their sum below")
    mixer, (q, k, v) = make_mixer(text, device=device), (heads(s, device) for s in range(3))
    k, v = (x[:, : getattr(mixer, "num_kv_heads", 2)] for x in (k, v))
    mask = right_padding(2, 9, device=device) if masked else None
    assert_close(mixer.mix_heads(q, k, v, mask), by_hand(mixer, q, k, v, mask))


@pytest.mark.parametrize(
    ("combine", "want"),
    [
        ("sum", lambda a, b, qkv, gate: a.mix_heads(*qkv) + b.mix_heads(*qkv)),
        (
            "gate",
            lambda a, b, qkv, gate: (
                a.mix_heads(*qkv) * gate.softmax(0)[0] + b.mix_heads(*qkv) * gate.softmax(0)[1]
            ),
        ),
        (
            "heads",
            lambda a, b, qkv, gate: torch.cat(
                (a.mix_heads(*(t[:, :1] for t in qkv)), b.mix_heads(*(t[:, 1:] for t in qkv))), -1
            ),
        ),
    ],
)
def test_a_hybrid_combines_what_its_parts_make_of_the_heads(combine, want):
    hybrid = make_mixer(f"hybrid(mixers=('spectral', 'local(window=3)'), combine={combine})")
    qkv = [heads(seed) for seed in range(3)]
    expected = want(*hybrid.mixers, qkv, getattr(hybrid, "gate", None))
    assert_close(hybrid.mix_heads(*qkv), expected)


@each_mixer
def test_reads_names_the_heads_that_matter(text):
    mixer, qkv = make_mixer(text), [heads(seed) for seed in range(3)]
    before = mixer.mix_heads(*qkv)
    for index, part in enumerate("qkv"):
        changed = [heads(9) if index == other else qkv[other] for other in range(3)]
        matters = part in mixer.reads or (part == "v" and not mixer.reads)
        assert torch.equal(mixer.mix_heads(*changed), before) != matters


@each_mixer
def test_mixing_outlives_the_projections(text):
    mixer, qkv = make_mixer(text), [heads(seed) for seed in range(3)]
    want = mixer.mix_heads(*qkv)
    assert mixer.drop_projections() is mixer
    assert not any(isinstance(m, nn.Linear) for m in mixer.modules())
    assert torch.equal(mixer.mix_heads(*qkv), want)

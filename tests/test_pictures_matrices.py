"""Matrices of mixers: what is drawn is what the mixer computes.

Shapes: B batch, N tokens, D width, H heads.
"""

from __future__ import annotations

import math

import pytest
import torch

from flashmix.errors import ArgumentError
from flashmix.visualize import measures
from flashmix.visualize.matrices import (
    has_head_matrices,
    head_matrices,
    impulse_response,
    influence,
    is_affine,
)
from helpers import MIXERS, assert_close, make_mixer, randn

N, DIM, HEADS = 13, 8, 2
HEADED = [text for text in MIXERS if has_head_matrices(make_mixer(text))]
ATTENTIONS = [text for text in HEADED if not text.startswith("fourier")]
AFFINE = [text for text in MIXERS if is_affine(make_mixer(text))]


def values(mixer, x):
    """What the heads mix, [B, H, N, dh]."""
    if hasattr(mixer, "qkv"):
        v = mixer.heads(x, None)[2]
        return v.repeat_interleave(HEADS // v.shape[1], 1)
    return mixer.heads(x, None)


@pytest.mark.parametrize("text", HEADED)
def test_matrices_applied_to_the_values_give_the_output(text):
    mixer, x = make_mixer(text), randn(2, N, DIM)
    mixed = (head_matrices(mixer, x) @ values(mixer, x)).transpose(1, 2).flatten(2)
    assert_close(mixer.out(mixed), mixer(x))


@pytest.mark.parametrize("text", ATTENTIONS)
def test_rows_of_attention_sum_to_one(text):
    weights = head_matrices(make_mixer(text), randn(2, N, DIM))
    assert weights.shape == (2, HEADS, N, N)
    assert (weights >= 0).all()
    assert_close(weights.sum(-1), torch.ones(2, HEADS, N, dtype=torch.float64))


def test_local_weights_vanish_outside_the_window():
    weights = head_matrices(make_mixer("local(window=5)"), randn(1, N, DIM))
    token = torch.arange(N)
    near = (token[:, None] - token).abs() <= 2
    assert ((weights > 0) == near).all()
    assert (measures.share_within(weights, 2) == 1).all()
    assert (measures.share_within(weights, 1) < 1).all()


def test_topk_has_exactly_k_weights_in_every_row():
    weights = head_matrices(make_mixer("topk(topk=3)"), randn(2, N, DIM))
    assert ((weights > 0).sum(-1) == 3).all()


def test_block_topk_keeps_whole_blocks(small_blocks):
    weights = head_matrices(make_mixer("topk(topk=6, selection=block)"), randn(1, 16, DIM))
    kept = (weights > 0).unflatten(-1, (4, 4))
    assert (kept.all(-1) == kept.any(-1)).all()
    assert (kept.any(-1).sum(-1) == 2).all()


CAUSAL = [text for text in MIXERS if "causal=True" in text]


@pytest.mark.parametrize("text", CAUSAL)
def test_causal_mixers_are_lower_triangular(text):
    mixer, x = make_mixer(text), randn(N, DIM)
    assert measures.share_ahead(influence(mixer, x)) == 0
    if has_head_matrices(mixer):
        assert head_matrices(mixer, x[None]).triu(1).count_nonzero() == 0
    if is_affine(mixer):
        assert impulse_response(mixer, N).abs().amax(-1).triu(1).max() < 1e-12


@pytest.mark.parametrize("text", AFFINE)
@pytest.mark.parametrize("n", [1, 12, 13])
def test_impulse_responses_applied_to_the_input_give_the_output(text, n):
    mixer, x = make_mixer(text), randn(1, n, DIM)
    y = mixer(torch.zeros_like(x))[0].clone()
    for channel in range(DIM):
        response = impulse_response(mixer, n, channel, dtype=torch.float64)
        y += torch.einsum("ijd,j->id", response, x[0, :, channel])
    assert_close(y[None], mixer(x))


@pytest.mark.parametrize("n", [12, 13])
def test_fnet_responds_with_the_cosines_of_the_fourier_matrix(n):
    token, channel = torch.arange(n).double(), torch.arange(DIM).double()
    for c in range(DIM):
        turns = token[:, None, None] * token[None, :, None] / n + c * channel / DIM
        response = impulse_response(make_mixer("fnet"), n, c, dtype=torch.float64)
        assert_close(response, torch.cos(2 * math.pi * turns))


@pytest.mark.parametrize("text", ["spectral(modes=3)", "spectral(modes=3, unitary=True)"])
def test_the_spectral_filter_is_circulant_and_keeps_channels_apart(text):
    mixer = make_mixer(text)
    for channel in range(DIM):
        response = impulse_response(mixer, N, channel)
        assert measures.circulant_deviation(response[..., channel]) < 1e-12
        others = torch.arange(DIM) != channel
        assert response[..., others].abs().max() < 1e-12
    assert measures.circulant_deviation(influence(mixer, randn(N, DIM))) < 1e-12


def test_attention_is_not_circulant():
    weights = head_matrices(make_mixer("attention"), randn(1, N, DIM))
    assert (measures.circulant_deviation(weights) > 0.01).all()


def test_fourier_attention_is_circulant_at_given_tokens():
    matrices = head_matrices(make_mixer("fourier"), randn(2, N, DIM))
    assert measures.circulant_deviation(matrices).max() < 1e-12


@pytest.mark.parametrize("text", MIXERS)
def test_influence_is_the_norm_of_the_jacobians_blocks(text):
    mixer, x = make_mixer(text), randn(7, DIM)
    jacobian = torch.autograd.functional.jacobian(lambda x: mixer(x[None])[0], x)
    assert_close(influence(mixer, x), jacobian.square().sum((1, 3)).sqrt())


def test_fewer_directions_estimate_the_influence():
    mixer, x = make_mixer("attention", 64), randn(5, 64)
    exact, estimate = influence(mixer, x, directions=64), influence(mixer, x, directions=32)
    # The relative error of a square is about sqrt(2 / 32) = 25 % per entry, of a root half of it.
    assert ((estimate / exact - 1).abs() < 0.5).all()
    assert not torch.equal(estimate, exact)


def test_a_data_dependent_mixer_has_no_impulse_response():
    with pytest.raises(ArgumentError, match="not a fixed linear map; use influence"):
        impulse_response(make_mixer("attention"), N)
    with pytest.raises(ArgumentError, match="channel must be 0 to 7, got 8"):
        impulse_response(make_mixer("fnet"), N, 8)
    with pytest.raises(ArgumentError, match="FNet has no matrix per head"):
        head_matrices(make_mixer("fnet"), randn(1, N, DIM))


def test_entropy_runs_from_one_token_to_all():
    weights = torch.stack((torch.eye(8), torch.full((8, 8), 1 / 8)))
    assert_close(
        measures.entropy_bits(weights), torch.tensor([[0.0], [3.0]]).expand(2, 8).double(), 1e-7
    )


@pytest.mark.parametrize("n", [12, 13])
def test_energy_by_frequency_sums_to_the_energy(n):
    x = randn(3, n, DIM)
    assert_close(measures.energy_by_frequency(x).sum(-1), n * x.square().sum((-1, -2)))

"""The padding law: every mixer and operator acts as if the padding had been removed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmix import create_mixer, list_mixers, ops
from flashmix.mixers import parse_mixer
from flashmix.models import Encoder
from helpers import (
    FLOAT64_BUDGET,
    MIXERS,
    assert_close,
    each_impl,
    each_mixer,
    make_mixer,
    randn,
    right_padding,
    skip_unless_runs,
)

pytestmark = pytest.mark.usefixtures("small_blocks")

GARBAGE = [float("nan"), float("inf"), -float("inf"), 1e300]


@st.composite
def masks(draw):
    """Any mask [B, N]: holes, left and right padding, none, or nothing else."""
    n = draw(st.integers(1, 11))
    rows = st.lists(st.booleans(), min_size=n, max_size=n)
    return torch.tensor(draw(st.lists(rows, min_size=1, max_size=3)))


def left_padding(batch, n):
    return right_padding(batch, n).flip(1)


def holes(batch, n):
    return randn(batch, n, seed=9) > 0


LAYOUTS = {
    "right": right_padding(3, 11),
    "left": left_padding(3, 11),
    "holes": holes(3, 11),
    "one-all-padding": torch.cat((right_padding(1, 11), torch.zeros(1, 11, dtype=torch.bool))),
    "long": holes(2, 75),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def spoil(x, mask, axis):
    """``x`` with NaN, infinities and huge numbers at the padding."""
    shape = [1] * x.dim()
    shape[0], shape[axis] = mask.shape
    garbage = torch.tensor(GARBAGE, dtype=x.dtype, device=x.device)
    filler = garbage[torch.arange(x.numel(), device=x.device) % len(GARBAGE)].view_as(x)
    return torch.where(mask.view(shape), x, filler)


def outputs_and_grads(run, tokens, parameters, mask, upstream):
    tokens = [x.detach().requires_grad_() for x in tokens]
    y = run(*tokens, mask=mask)
    leaves = [*tokens, *parameters]
    grads = torch.autograd.grad(y, leaves, upstream, allow_unused=True, materialize_grads=True)
    return y, grads[: len(tokens)], grads[len(tokens) :]


def check_padding_is_as_if_removed(run, tokens, parameters, mask, axis=1):
    """Outputs and all gradients, against each sequence alone; zeros and no NaN at padding.

    ``run(*tokens, mask=)`` mixes along ``axis``; its upstream gradient is spoilt at padding too.
    """
    mask = mask.to(tokens[0].device)
    upstream = randn(*tokens[0].shape, seed=7, device=tokens[0].device)
    y, token_grads, parameter_grads = outputs_and_grads(
        run,
        [spoil(x, mask, axis) for x in tokens],
        parameters,
        mask,
        spoil(upstream, mask, axis),
    )
    alone_grads = [torch.zeros_like(p) for p in parameters]
    for row, real in enumerate(mask):
        positions = real.nonzero().squeeze(1)
        for x in (y, *token_grads):
            assert not x[row].index_select(axis - 1, (~real).nonzero().squeeze(1)).any()
        if not len(positions):
            continue
        y_alone, token_grads_alone, parameter_grads_alone = outputs_and_grads(
            run,
            [x[row : row + 1].index_select(axis, positions) for x in tokens],
            parameters,
            None,
            upstream[row : row + 1].index_select(axis, positions),
        )
        for got, want in zip((y, *token_grads), (y_alone, *token_grads_alone), strict=True):
            assert_close(got[row].index_select(axis - 1, positions), want[0])
        alone_grads = [a + b for a, b in zip(alone_grads, parameter_grads_alone, strict=True)]
    for got, want in zip(parameter_grads, alone_grads, strict=True):
        assert_close(got, want)


def test_every_mixer_is_in_the_table():
    assert {parse_mixer(text).name for text in MIXERS} == set(list_mixers())


@each_mixer
@each_layout
def test_padding_of_a_mixer_is_as_if_removed(text, layout, device):
    mixer = make_mixer(text, device=device)
    mask = LAYOUTS[layout]
    x = randn(*mask.shape, 8, device=device)
    check_padding_is_as_if_removed(mixer, [x], list(mixer.parameters()), mask)


@each_mixer
@given(mask=masks())
def test_any_padding_of_a_mixer_is_as_if_removed(text, device, mask):
    mixer = make_mixer(text, device=device)
    x = randn(*mask.shape, 8, device=device)
    check_padding_is_as_if_removed(mixer, [x], list(mixer.parameters()), mask)


@each_impl()
@each_layout
def test_padding_of_an_op_is_as_if_removed(case, impl, layout, device):
    skip_unless_runs(case.operator, impl, torch.float64, device)
    mask = LAYOUTS[layout]
    tokens, parameters = case.inputs(*mask.shape, device=device)
    parameters = [p.requires_grad_() for p in parameters]

    def run(*tokens, mask):
        return case.run(*tokens, *parameters, mask=mask, impl=impl)

    check_padding_is_as_if_removed(run, tokens, parameters, mask, case.token_axis)


@each_layout
def test_padding_of_an_encoder_is_as_if_removed(layout, device):
    torch.manual_seed(0)
    encoder = Encoder(8, 4, "fnet(norm=ortho),spectral+local,fourier,topk(topk=3)", num_heads=2)
    encoder = encoder.to(device, torch.float64)
    mask = LAYOUTS[layout]
    x = randn(*mask.shape, 8, device=device)
    check_padding_is_as_if_removed(encoder, [x], list(encoder.parameters()), mask)


@pytest.mark.parametrize(
    "text", ["attention", "local(window=3)", "topk(topk=3)", "topk(selection=block)", "fourier"]
)
@each_layout
def test_weights_know_no_padding(text, layout, device):
    mask = LAYOUTS[layout].to(device)
    mixer = make_mixer(text, device=device)
    x = randn(*mask.shape, 8, device=device)
    y, weights = mixer(spoil(x, mask, 1), mask, return_weights=True)
    assert_close(y, mixer(x, mask))
    for row, real in enumerate(mask):
        if not real.any():
            assert not weights[row].any()
            continue
        alone = mixer(x[row : row + 1, real], return_weights=True)[1][0]
        if text == "fourier":
            got, rest = weights[row].split([alone.shape[1], weights.shape[2] - alone.shape[1]], 1)
        else:
            got = weights[row][:, real][:, :, real]
            rest = weights[row].sum() - got.sum()
        assert_close(got, alone)
        assert rest.abs().sum() <= FLOAT64_BUDGET


def test_fourier_weights_of_padding_alone_are_zero(device):
    v = torch.full((2, 3, 5, 4), float("nan"), device=device)
    mask = torch.zeros(2, 5, dtype=torch.bool, device=device)
    assert torch.equal(ops.fourier_weights(v, mask=mask), torch.zeros(2, 3, 3, device=device))


@pytest.mark.parametrize("text", MIXERS)
def test_a_mask_of_real_tokens_changes_nothing(text, device):
    mixer = make_mixer(text, device=device)
    x = randn(2, 9, 8, device=device)
    mask = torch.ones(2, 9, dtype=torch.bool, device=device)
    assert_close(mixer(x, mask), mixer(x))


def test_padding_of_a_half_precision_batch_is_as_if_removed(device):
    mixer = create_mixer("fnet", 8, norm="ortho")
    mask = LAYOUTS["left"].to(device)
    x = randn(*mask.shape, 8, dtype=torch.bfloat16, device=device)
    y = mixer(spoil(x, mask, 1), mask)
    # Both are float32 results rounded once, so they part by at most two half-units: one epsilon.
    for row, real in enumerate(mask):
        alone = mixer(x[row : row + 1, real])[0]
        assert_close(y[row, real], alone, torch.finfo(torch.bfloat16).eps)

"""Attention swapped in changes no output, masks are never dropped, a registered name is kept."""

from __future__ import annotations

import copy

import pytest
import torch

import flashmix
from flashmix.errors import ArgumentError, ModelError
from flashmix.hf import pool_mean
from flashmix.hf.interface import register_swapped
from helpers import assert_close
from hf_models import COMMON, TEXT, classifier, reviews, swapped, transformers

MASKS = {
    "right": [[1] * 9, [1] * 4 + [0] * 5],
    "left": [[1] * 9, [0] * 5 + [1] * 4],
    "holes": [[1, 0, 1, 1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0, 1, 1, 0]],
}


def hidden(model, mask):
    ids = reviews(9, 9)["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state


@pytest.mark.parametrize("impl", ["attention", "attention(impl=naive)"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", TEXT)
def test_swapping_with_attention_changes_no_output_at_padding_neither(name, mask, impl):
    model = classifier(name).base_model.double()
    mask = torch.tensor(MASKS[mask])
    want = hidden(copy.deepcopy(model), mask)
    assert_close(hidden(flashmix.swap(model, impl), mask), want, 1e-11)


def test_a_head_that_pools_padding_reads_what_attention_gives():
    config = transformers.SiglipTextConfig(**COMMON, pad_token_id=1)
    torch.manual_seed(0)
    model = transformers.SiglipTextModel(config).double().eval()
    batch = reviews(9, 4)
    with torch.no_grad():
        want = model(**batch).pooler_output
        assert_close(flashmix.swap(model, "attention")(**batch).pooler_output, want, 1e-11)


def test_a_second_reader_of_the_mask_gets_its_own_sequence():
    options = {k: v for k, v in COMMON.items() if "vocab" not in k and "position" not in k}
    config = transformers.Siglip2VisionConfig(**options, num_patches=16, patch_size=2)
    torch.manual_seed(0)
    model = transformers.Siglip2VisionModel(config).double().eval()
    pixels = torch.randn(2, 6, 12, dtype=torch.float64)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    shapes = torch.tensor([[2, 3], [2, 2]])
    with torch.no_grad():
        want = model(pixels, mask, shapes).pooler_output
        got = flashmix.swap(model, "attention")(pixels, mask, shapes).pooler_output
    assert_close(got, want, 1e-11)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_nothing_at_padding_reaches_a_real_token_or_its_gradient(bad):
    model = swapped("attention").base_model.double()
    batch = reviews(9, 4)
    embeds = model.embeddings.word_embeddings(batch["input_ids"]).detach()

    def run(fill):
        x = embeds.clone()
        x[1, 4:] = fill
        x.requires_grad_()
        y = model(inputs_embeds=x, attention_mask=batch["attention_mask"]).last_hidden_state
        real = batch["attention_mask"].bool()
        (gradient,) = torch.autograd.grad(y[real].square().sum(), x)
        return y[real], gradient[real]

    for got, want in zip(run(bad), run(0.0), strict=True):
        assert_close(got, want, 1e-9)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("mixer", ["attention", "local(window=5)", "topk(topk=3)"])
def test_a_trace_of_an_unpadded_batch_keeps_the_mask(mixer):
    model = swapped(mixer).base_model.double()
    model.config.return_dict = False
    ids, mask = reviews(9, 4).values()
    traced = torch.jit.trace(model, (ids, torch.ones_like(mask)), check_trace=False)
    with torch.no_grad():
        assert_close(traced(ids, mask)[0], model(ids, mask)[0], 1e-11)


def test_a_mask_of_four_axes_is_honoured_or_refused():
    model, mask = swapped("local(window=5)").base_model.double(), reviews(9, 4)["attention_mask"]
    want, four = hidden(model, mask), mask[:, None, None, :]
    additive = (1.0 - four.double()) * torch.finfo(torch.float64).min
    for form in (four.bool(), additive):
        assert torch.equal(hidden(model, form), want)
    for form in (four, four.int(), additive * 0 - 0.5 * (1 - four), mask[:, None, :]):
        with pytest.raises(ModelError, match="attention_mask"):
            hidden(model, form)


def test_the_mean_is_over_the_mask_of_this_call():
    model, (ids, mask) = pool_mean(classifier()), reviews(9, 4).values()
    want = model(ids, attention_mask=mask).logits
    assert torch.equal(model(ids, mask).logits, want)
    bare = model.base_model(ids)[0]
    model(ids, attention_mask=mask)
    assert torch.equal(model.base_model(ids)[0], bare)
    with pytest.raises(ModelError, match="pool_mean"):
        model(ids, attention_mask=mask[:, None, None, :].bool())


def test_a_registered_name_keeps_its_mixer():
    one, two = (flashmix.register_attention(f"local(window={w})") for w in (3, 5))
    assert one != two
    flashmix.register_attention("local(window=3)", "mixer_of_mine")
    assert flashmix.register_attention("local(window=3)", "mixer_of_mine") == "mixer_of_mine"
    with pytest.raises(ArgumentError, match="another name"):
        flashmix.register_attention("local(window=5)", "mixer_of_mine")
    register_swapped()
    with pytest.raises(ArgumentError, match="another name"):
        flashmix.register_attention("local", "mixers")


@pytest.mark.parametrize("option", ["softcap", "s_aux", "sliding_window", "cu_seq_lens_q"])
def test_a_registered_attention_refuses_what_it_does_not_take(option):
    name = flashmix.register_attention("local(window=3)")
    attend = transformers.AttentionInterface()[name]
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(ModelError, match=option):
        attend(torch.nn.Identity(), q, q, q, None, **{option: 2})


class CrossAttention(torch.nn.Module):
    pass


def test_cross_attention_of_equal_lengths_gets_no_window():
    attend = transformers.AttentionInterface()[flashmix.register_attention("local(window=3)")]
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(ModelError, match="cross-attention"):
        attend(CrossAttention(), q, q, q, None)

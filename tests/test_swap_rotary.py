"""Encoders that rotate q and k: what each mixer sees of them, drops of them, and gives instead."""

from __future__ import annotations

import copy

import pytest
import torch

import flashmix
from flashmix.errors import ArgumentError, ModelError
from helpers import assert_close, relative_error
from hf_models import COMMON as PLAIN
from hf_models import transformers
from rotary_models import COMMON, ENCODERS, batch, build, hidden, randomised, with_attention

each_family = pytest.mark.parametrize("name", ENCODERS)
LAYERS = 2
WIDER = {"Gemma3Text"}
"""Heads times their width is not the model's width here: v stays, and is what is mixed."""


def mixers(model):
    return [m.mixer for m in model.modules() if hasattr(m, "mixer")]


@each_family
def test_attention_swapped_into_a_rotary_model_changes_no_output(name):
    model, inputs = build(name), batch(name, 13, 9)
    with torch.no_grad():
        want = hidden(copy.deepcopy(model), inputs)
        assert_close(hidden(flashmix.swap(model, "attention"), inputs), want, 1e-11)


@each_family
@pytest.mark.parametrize("mixer", ["local(window=(2, 1))", "topk(topk=3)"])
def test_attention_to_some_keys_is_the_models_own_with_the_others_masked(name, mixer):
    """Rotated q and k, the model's scaling and its grouped heads are those of its own attention."""
    model, inputs = build(name), batch(name, 13)

    def attend(_, x, q, k, v, scaling):
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        scores = q @ k.mT * scaling
        at = torch.arange(scores.shape[-1])
        apart = at[:, None] - at
        seen = (apart <= 2) & (apart >= -1)
        if "topk" in mixer:
            seen = scores >= scores.topk(3).values[..., -1:]
        return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v

    want = with_attention(model, inputs, attend)
    with torch.no_grad():
        assert_close(hidden(flashmix.swap(model, mixer), inputs), want, 1e-11)


@each_family
def test_fourier_mixers_of_a_rotary_model_equal_their_formulas(name):
    """fnet and spectral mix the tokens themselves, or v of all heads where it has another width."""
    inputs = batch(name, 13)
    model = build(name)
    swapped = randomised(flashmix.swap(copy.deepcopy(model), "fnet,spectral(modes=3)"))
    _, spectral = mixers(swapped)

    def attend(layer, x, q, k, v, _):
        if name in WIDER:
            x = v.repeat_interleave(q.shape[1] // v.shape[1], 1).transpose(1, 2).flatten(2)
        if layer % 2 == 0:
            y = torch.fft.fft2(x).real
        else:
            spectrum = torch.fft.rfft(x, dim=1)
            spectrum[:, 3:] = 0
            spectrum[:, :3] *= torch.view_as_complex(spectral.weight)
            y = torch.fft.irfft(spectrum, n=x.shape[1], dim=1) + spectral.bias
        return y.unflatten(-1, (-1, v.shape[-1])).transpose(1, 2)

    want = with_attention(model, inputs, attend)
    with torch.no_grad():
        assert_close(hidden(swapped, inputs), want, 1e-11)


PATTERNS = ["fourier,local(window=3)", "spectral+local(window=3),fnet", "topk(topk=3),spectral"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "DINOv3ViT"])
def test_a_text_of_a_rotary_model_does_not_see_its_neighbours_lengths(name, pattern):
    model = randomised(flashmix.swap(build(name), pattern))
    inputs = batch(name, 8, 13)
    alone = {key: value[:1, :8] for key, value in inputs.items()}
    with torch.no_grad():
        assert_close(hidden(model, inputs)[:8], hidden(model, alone), 1e-11)


@each_family
def test_nothing_of_a_swapped_rotary_model_is_left_without_a_gradient(name):
    model = build(name)
    unread = without_gradient(model, name)
    for pattern in ("fnet,fourier", "spectral,local(window=3)"):
        swapped = randomised(flashmix.swap(copy.deepcopy(model), pattern))
        assert without_gradient(swapped, name) <= unread


def without_gradient(model, name):
    y = hidden(model, batch(name, 13, 9))
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).double())
    return {p for p, w in model.named_parameters() if w.grad is None or not w.grad.any()}


@each_family
def test_what_only_q_and_k_pass_goes_with_their_projections(name):
    model = build(name)
    before = {path for path, _ in model.named_parameters()}
    flashmix.swap(model, "fnet,fourier")
    gone = before - {path for path, _ in model.named_parameters()}
    report = flashmix.swap_report(model)
    assert report.parameters_before == sum(p.numel() for p in build(name).parameters())
    for norm in (path for path in before if "q_norm" in path or "k_norm" in path):
        assert norm in gone
    kept = {path for path in before if "v_proj" in path and ".1." in path}
    assert not kept & gone


@pytest.mark.parametrize("name", ["ModernBert", "EuroBert", "Esmc", "Gemma3Text", "DINOv3ViT"])
@pytest.mark.parametrize("pattern", ["attention,fourier", "fnet,spectral+local(window=3)"])
def test_a_swapped_rotary_model_comes_back_from_its_folder(name, pattern, tmp_path):
    model, inputs = randomised(flashmix.swap(build(name), pattern)), batch(name, 13, 9)
    model.save_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path)
    assert flashmix.swap_report(loaded) == flashmix.swap_report(model)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    with torch.no_grad():  # buffers of positions, which are not saved, were float32 before
        assert_close(hidden(loaded, inputs), hidden(model, inputs), 1e-6)


@pytest.mark.parametrize("name", ["ModernBert", "Gemma3Text"])
def test_attention_in_a_sliding_layer_is_local_with_the_models_own_reach(name):
    """Tokens at the window's edge are seen, and those one further are not."""
    model, inputs = build(name), batch(name, 13, 9)
    reach = model.config.sliding_window - (name == "Gemma3Text")  # which leaves out the edge
    layer = model.config.layer_types.index("sliding_attention")
    with torch.no_grad():
        want = hidden(copy.deepcopy(model), inputs)
        for window, same in ((reach, True), (reach - 1, False), (reach + 1, False)):
            local = {layer: f"local(window=({window}, {window}))"}
            got = hidden(flashmix.swap(copy.deepcopy(model), local), inputs)
            assert (relative_error(got, want) < 1e-11) == same


def test_dropout_of_attention_weights_acts_within_a_window_too():
    model = flashmix.swap(build("ModernBert", attention_dropout=0.5), "attention").train()
    inputs = batch("ModernBert", 13, 9)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    model.layers[0].attn.attention_dropout = 0.0  # of the layer without a window
    assert model.layers[1].attn.sliding_window is not None
    assert not torch.equal(hidden(model, inputs), hidden(model, inputs))
    flashmix.swap(model, {1: "local(window=(3, 3))"})  # which has no weights to drop
    assert torch.equal(hidden(model, inputs), hidden(model, inputs))


@pytest.mark.parametrize("name", ["EuroBert", "ModernBert", "DINOv3ViT"])
def test_fourier_everywhere_is_refused_where_rotation_is_all_that_tells_positions_apart(name):
    with pytest.raises(ModelError, match=r"only positions are rotations.*allow_unordered=True"):
        flashmix.swap(build(name), "fourier")
    flashmix.swap(build(name), "fourier,local")
    model = flashmix.swap(build(name), "fourier", allow_unordered=True)
    if name == "EuroBert":  # what the refusal says is so
        inputs = batch(name, 13)
        mirrored = {"input_ids": inputs["input_ids"].flip(1)}
        with torch.no_grad():
            assert_close(hidden(model, mirrored), hidden(model, inputs).flip(0), 1e-11)


def test_fourier_everywhere_needs_no_permission_where_there_are_absolute_positions():
    flashmix.swap(transformers.BertModel(transformers.BertConfig(**PLAIN)), "fourier")
    esm = {**COMMON, "position_embedding_type": "absolute", "mask_token_id": 2}
    flashmix.swap(transformers.EsmModel(transformers.EsmConfig(**esm)), "fourier")


def test_a_swapped_rotary_model_is_one_graph(name="ModernBert"):
    model = flashmix.swap(build(name), "fnet,attention")
    inputs = batch(name, 13, 9)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(hidden(compiled, inputs), hidden(model, inputs), 1e-11)


def test_softcaps_are_refused_by_name():
    model = transformers.Gemma2Model(
        transformers.Gemma2Config(**{**COMMON, "head_dim": 8, "num_key_value_heads": 1})
    )
    with pytest.raises(ModelError, match=r"self_attn.*softcap, which mixers do not take"):
        flashmix.swap(model, "attention")


def test_learned_positions_that_no_layer_reads_stop_training_also_in_a_loaded_model(tmp_path):
    def mlcd(pattern):
        options = {key: COMMON[key] for key in {*COMMON} - {"vocab_size", "pad_token_id"}}
        config = transformers.MLCDVisionConfig(**options, image_size=16, patch_size=4)
        return flashmix.swap(transformers.MLCDVisionModel(config), pattern)

    model = mlcd("fnet")
    model.save_pretrained(tmp_path)
    for one in (model, flashmix.from_pretrained(tmp_path)):
        assert not one.class_pos_emb.requires_grad
        assert one.embeddings.class_embedding.requires_grad
    assert mlcd("fnet,local").class_pos_emb.requires_grad


SWIN = {"embed_dim": 16, "depths": [2], "num_heads": [2], "image_size": 32, "window_size": 4}


def test_a_mask_that_adds_to_scores_is_attentions_alone():
    torch.manual_seed(0)
    model = transformers.SwinModel(transformers.SwinConfig(**SWIN, initializer_range=0.5)).eval()
    model = model.double()
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32).double()}
    for mixer in ("local", "topk", "fourier", "fnet", "spectral", "spectral+local"):
        with pytest.raises(ModelError, match=r"adds to its scores.*attention can"):
            flashmix.swap(model, mixer)
    with torch.no_grad():
        want = model(**pixels).last_hidden_state
        assert_close(flashmix.swap(model, "attention")(**pixels).last_hidden_state, want, 1e-11)


def test_an_implementation_without_windows_is_refused_in_a_sliding_layer():
    with pytest.raises(ArgumentError, match=r"layers\.1\.attn: .*'sdpa'. Choices: auto"):
        flashmix.swap(build("ModernBert"), "attention(impl=sdpa)")
    flashmix.swap(build("ModernBert"), "attention(impl=naive)")

"""Decoders, whose mixers must be causal, and encoders beside a decoder, which stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch

import flashmix
from flashmix.errors import ArgumentError, ModelError
from helpers import assert_close
from hf_models import transformers
from rotary_models import COMMON, batch, randomised, with_attention

IDS = {"bos_token_id": 2, "eos_token_id": None}
GROUPED = {**COMMON, **IDS, "num_key_value_heads": 1}
DECODERS = {
    "GPT2": {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **IDS},
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": 4},
    "Qwen3": {**GROUPED, "head_dim": 16},  # heads times their width is twice the model's width
}
each_decoder = pytest.mark.parametrize("name", DECODERS)


def noisy(model):
    """In float64, with weights large enough that attention is far from uniform."""
    model, generator = model.double().eval(), torch.Generator().manual_seed(1)
    for path, parameter in model.named_parameters():
        if "embed_positions" in path:  # sines, which some do not save
            continue
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.3 * noise
    return model


def decoder(name):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**DECODERS[name])
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    return noisy(getattr(transformers, f"{name}{head}")(config))


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@each_decoder
def test_attention_swapped_into_a_decoder_changes_no_output(name):
    model, inputs = decoder(name), batch(name, 13, 9)
    swapped = flashmix.swap(copy.deepcopy(model), "attention")
    real = inputs["attention_mask"].bool()
    assert_close(logits(swapped, inputs)[real], logits(model, inputs)[real], 1e-11)
    inputs = {key: value.flip(1) for key, value in inputs.items()}  # padded at the left
    real = inputs["attention_mask"].bool()
    assert_close(logits(swapped, inputs)[real], logits(model, inputs)[real], 1e-11)


@each_decoder
def test_causal_mixers_of_a_decoder_equal_their_formulas(name):
    model, inputs = decoder(name), batch(name, 13)
    swapped = flashmix.swap(
        copy.deepcopy(model), "local(window=3, causal=True),spectral(modes=3, causal=True)"
    )
    swapped = randomised(swapped)
    *_, spectral = (m.mixer for m in swapped.modules() if hasattr(m, "mixer"))

    def attend(layer, x, q, k, v, scaling):
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        at = torch.arange(q.shape[2])
        back = at[:, None] - at
        if layer == 0:
            scores = (q @ k.mT * scaling).masked_fill((back < 0) | (back > 2), -torch.inf)
            return scores.softmax(-1) @ v
        x = v.transpose(1, 2).flatten(2) if name == "Qwen3" else x
        taps = torch.fft.irfft(torch.view_as_complex(spectral.weight), n=5, dim=0)
        y = sum(
            taps[t] * torch.nn.functional.pad(x, (0, 0, t, 0))[:, : x.shape[1]] for t in range(5)
        )
        return (y + spectral.bias).unflatten(-1, (-1, v.shape[-1])).transpose(1, 2)

    want = with_attention(model, inputs, attend, read=lambda y: y.logits)
    assert_close(logits(swapped, inputs), want, 1e-11)


@each_decoder
def test_a_swapped_decoder_scores_a_text_without_its_continuation_or_padding(name):
    pattern = "topk(topk=2, causal=True),spectral(modes=3, causal=True)"
    model = randomised(flashmix.swap(decoder(name), pattern))
    inputs = batch(name, 9, 13)
    alone = {key: value[:1, :9] for key, value in inputs.items()}
    assert_close(logits(model, inputs)[:1, :9], logits(model, alone), 1e-11)
    prefix = {key: value[:, :5] for key, value in alone.items()}
    assert_close(logits(model, alone)[:, :5], logits(model, prefix), 1e-11)


@each_decoder
def test_a_swapped_decoder_trains_every_weight(name):
    model = decoder(name)
    for pattern in ("attention", "local(window=3, causal=True),spectral(modes=3, causal=True)"):
        swapped = randomised(flashmix.swap(copy.deepcopy(model), pattern)).train()
        ids = batch(name, 13)["input_ids"]
        swapped(input_ids=ids, labels=ids).loss.backward()
        assert not {path for path, p in swapped.named_parameters() if p.grad is None}


@each_decoder
def test_a_swapped_decoder_generates_without_a_cache_and_refuses_one(name):
    pattern = "local(window=3, causal=True),spectral(modes=3, causal=True)"
    model = randomised(flashmix.swap(decoder(name), pattern))
    ids = batch(name, 5)["input_ids"]
    got = model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False)
    for _ in range(4):
        ids = torch.cat([ids, logits(model, {"input_ids": ids})[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, ids)
    with pytest.raises(ModelError, match=r"keep no cache.*use_cache=False"):
        model.generate(ids, max_new_tokens=2, use_cache=True)
    with pytest.raises(ModelError, match=r"keep no cache.*use_cache=False"):
        model(input_ids=ids, use_cache=True)


@each_decoder
@pytest.mark.parametrize("mixer", ["fnet", "spectral", "local", "fourier", "topk", "fnet+local"])
def test_mixers_that_see_later_tokens_are_refused_in_a_decoder(name, mixer):
    with pytest.raises(ModelError, match=r"is causal, and .* sees later tokens; causal mixers are"):
        flashmix.swap(decoder(name), mixer)


@each_decoder
def test_a_swapped_decoder_comes_back_from_its_folder(name, tmp_path):
    pattern = "attention,spectral(modes=3, causal=True)"
    model, inputs = randomised(flashmix.swap(decoder(name), pattern)), batch(name, 13, 9)
    model.save_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path)
    assert_close(logits(loaded, inputs), logits(model, inputs), 1e-6)
    assert flashmix.swap_report(loaded) == flashmix.swap_report(model)
    with pytest.raises(ModelError, match=r"keep no cache"):
        loaded(**inputs, use_cache=True)


def test_a_window_of_the_models_own_is_that_of_mistral():
    window = decoder("Mistral").config.sliding_window
    inputs = batch("Mistral", 13)
    want = logits(decoder("Mistral"), inputs)
    local = flashmix.swap(decoder("Mistral"), f"local(window={window}, causal=True)")
    assert_close(logits(local, inputs), want, 1e-11)
    torch.manual_seed(0)
    llama = decoder("Llama")
    llama.load_state_dict(decoder("Mistral").state_dict())
    flashmix.swap(llama, f"local(window={window}, causal=True)")
    assert_close(logits(llama, inputs), want, 1e-11)


PAIR = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "vocab_size": 60,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 64,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "bos_token_id": 0,
}
SOUND = {**PAIR, "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 16}
PAIRS = {
    "BartForConditionalGeneration": PAIR,
    "MBartForConditionalGeneration": PAIR,
    "PegasusForConditionalGeneration": PAIR,
    "MarianMTModel": PAIR,
    "M2M100ForConditionalGeneration": PAIR,
    "WhisperForConditionalGeneration": SOUND,
}
each_pair = pytest.mark.parametrize("name", PAIRS)


def pair(name):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return noisy(kind(kind.config_class(**PAIRS[name])))


def source(name):
    given = batch(name, 11, 7)
    if "Whisper" in name:
        given = {"input_features": torch.randn(2, 8, 24, generator=torch.Generator()).double()}
    return {**given, "decoder_input_ids": torch.tensor([[2, 8, 9], [2, 7, 6]])}


@each_pair
def test_the_encoder_beside_a_decoder_is_swapped_and_the_rest_stays(name):
    model, inputs = pair(name), source(name)
    want, before = logits(model, inputs), model.state_dict()
    attention = flashmix.swap(copy.deepcopy(model), "attention", part="encoder")
    assert_close(logits(attention, inputs), want, 1e-11)
    swapped = randomised(flashmix.swap(copy.deepcopy(model), "fnet,fourier", part="encoder"))
    assert flashmix.mixers_of(swapped.get_encoder()) == ["fnet", "fourier"]
    for path, module in swapped.named_modules():
        assert not hasattr(module, "mixer") or "encoder.layers" in path
    for key, value in swapped.state_dict().items():
        assert torch.equal(value, before[key])
    gone = before.keys() - swapped.state_dict().keys()
    assert all("encoder.layers" in key and "self_attn" in key for key in gone)
    assert swapped.config._attn_implementation == model.config._attn_implementation
    assert swapped.config.use_cache == model.config.use_cache
    # The decoder generates with its cache as before.
    main = model.main_input_name
    given = {key: value for key, value in inputs.items() if key in (main, "attention_mask")}
    cached, again = (
        swapped.generate(**given, max_new_tokens=3, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(cached, again)


@each_pair
def test_an_encoder_beside_a_decoder_comes_back_with_it(name, tmp_path):
    model, inputs = pair(name), source(name)
    randomised(flashmix.swap(model, "spectral+local(window=3),fnet", part="encoder"))
    model.save_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert_close(logits(loaded, inputs), logits(model, inputs), 1e-6)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert flashmix.swap_report(loaded.get_encoder()) == flashmix.swap_report(model.get_encoder())


def test_an_encoder_decoder_as_a_whole_is_refused_by_what_would_work():
    model = pair("BartForConditionalGeneration")
    with pytest.raises(ModelError, match=r"takes one of the two, part='encoder'"):
        flashmix.swap(model, "fnet")
    with pytest.raises(ArgumentError, match=r"no submodel 'encodr', but .*model\.encoder"):
        flashmix.swap(model, "fnet", part="encodr")
    with pytest.raises(ModelError, match=r"cross-attention|is causal"):
        flashmix.swap(model, "fnet", part="decoder")
    with pytest.raises(ModelError, match="cross-attention"):
        flashmix.swap(model, "attention", part="decoder")

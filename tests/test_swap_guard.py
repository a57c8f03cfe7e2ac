"""A mixer by name acts in every attention of a model, or is refused when it is set."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import flashmix
from flashmix.errors import ModelError
from helpers import assert_close
from hf_models import COMMON, classifier, reviews, swapped, transformers

NAME = flashmix.register_attention("local(window=3)")
SPEECH = {
    **{key: COMMON[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
    "intermediate_size": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_conv_pos_embeddings": 4,
    "num_feat_extract_layers": 1,
    "conv_dim": [8],
    "conv_stride": [5],
    "conv_kernel": [10],
}
XLNET = {"vocab_size": 60, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 8}
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "d_ff": 32}
IGNORING = {
    "Deberta": {**COMMON, "relative_attention": True},
    "DebertaV2": {**COMMON, "relative_attention": True},
    "WavLM": SPEECH,
    "XLNet": XLNET,
    "MPNet": COMMON,
    "RemBert": {**COMMON, "input_embedding_size": 16},
    "LongT5Encoder": {**T5, "pad_token_id": 0},  # the interface is called elsewhere in its file
}


def make(family: str, **options):
    config = getattr(transformers, f"{family.removesuffix('Encoder')}Config")
    kind = getattr(transformers, f"{family}Model")
    return kind._from_config(config(**IGNORING[family]), **options)


@pytest.mark.parametrize("family", IGNORING)
def test_a_model_that_would_ignore_a_mixer_refuses_its_name(family):
    stem = family.removesuffix("Encoder")  # LongT5's stack is the part that refuses
    words = rf"{stem}\w* would ignore attn_implementation '{NAME[:5]}.*never calls"
    with pytest.raises(ModelError, match=words):
        make(family, attn_implementation=NAME)
    model = make(family, attn_implementation="eager")
    for name in (NAME, {"": NAME}):
        with pytest.raises(ModelError, match=words):
            model.set_attn_implementation(name)
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("eager")


def test_a_model_without_attention_refuses_a_mixer_and_is_built_with_one_as_a_part():
    options = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 8}
    model = transformers.FNetModel(transformers.FNetConfig(**options))
    with pytest.raises(ModelError, match=r"FNetModel would ignore.*it has no attention"):
        model.set_attn_implementation(NAME)


def two_towers():
    """A model with an attention that calls the interface, and another that does not."""
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    audio = {"depths": [1], "num_attention_heads": [2], "patch_embeds_hidden_size": 8}
    audio |= {"hidden_size": 8, "num_mel_bins": 8, "spec_size": 16, "window_size": 2}
    return transformers.ClapConfig(
        text_config={**tower, "vocab_size": 60, "intermediate_size": 8}, audio_config=audio
    )


def test_a_mixer_may_be_set_for_the_part_that_takes_it():
    model = transformers.ClapModel(two_towers())
    before = model.audio_model.config._attn_implementation
    with pytest.raises(ModelError, match=r"ClapAudio.* would ignore"):
        model.set_attn_implementation(NAME)
    with pytest.raises(ModelError, match=r"ClapAudio.* would ignore"):
        model.set_attn_implementation({"audio_config": NAME})
    model.set_attn_implementation({"text_config": NAME})
    assert model.text_model.config._attn_implementation == NAME
    assert model.audio_model.config._attn_implementation == before


def test_a_model_that_takes_a_mixer_is_built_with_it_and_given_it():
    model = classifier(attn_implementation=NAME)
    other = classifier()
    other.set_attn_implementation(NAME)
    with torch.no_grad():
        assert torch.equal(model(**reviews(9, 4)).logits, other(**reviews(9, 4)).logits)


def layers(family: str):
    options = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60}
    options |= {"pad_token_id": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    if family == "T5":
        model = transformers.T5EncoderModel(transformers.T5Config(**T5))
        layer, kinds = model.encoder.block[0].layer[0].SelfAttention, "key_value_states"
    elif family == "MobileBert":
        config = transformers.MobileBertConfig(**COMMON, intra_bottleneck_size=16)
        model = transformers.MobileBertModel(config)
        layer, kinds = model.encoder.layer[0].attention.self, "key_tensor"
    else:
        config = getattr(transformers, f"{family}Config")(**options, **heads)
        model = getattr(transformers, f"{family}Model")(config)
        layer, kinds = model.encoder.layers[0].self_attn, "key_value_states"
    return model.eval(), layer, kinds


@pytest.mark.parametrize("family", ["Bart", "MBart", "Whisper", "T5", "MobileBert"])
def test_attention_to_other_tokens_of_the_same_number_is_refused(family):
    model, layer, option = layers(family)
    x = torch.randn(1, 5, 16)
    own, other = {option: None}, {option: x + 1}
    if family == "MobileBert":
        own, other = ({option: key, "value_tensor": x} for key in (x, x + 1))
    model.set_attn_implementation(NAME)
    with torch.no_grad():
        for one in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert one(x, **own)[0].isfinite().all()
            with pytest.raises(ModelError, match=f"cross-attention .it got {option}"):
                one(x, **other)
        model.set_attn_implementation("eager")
        assert layer(x, **other)[0].isfinite().all()


def test_a_swapped_layer_called_as_cross_attention_is_refused():
    model = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    flashmix.swap(model, "local(window=3)")
    layer, x = model.encoder.block[0].layer[0].SelfAttention, torch.randn(1, 5, 16)
    with pytest.raises(ModelError, match="cross-attention"):
        layer(x, key_value_states=x + 1)


def test_transformers_alone_builds_no_plain_attention_of_a_swapped_config():
    with pytest.raises(ModelError, match="MPNetModel would ignore"):
        transformers.MPNetModel(swapped("fnet", "mpnet").config)


@pytest.mark.parametrize("head", ["MPNetModel", "MPNetForMaskedLM"])
def test_a_swapped_model_that_never_called_the_interface_comes_back(head, tmp_path):
    model = swapped("fnet", "mpnet")
    model.save_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path, head)
    with torch.no_grad():
        one, other = (part.mpnet if hasattr(part, "mpnet") else part for part in (model, loaded))
        got = other(**reviews(9, 4)).last_hidden_state
        assert_close(got, one(**reviews(9, 4)).last_hidden_state, 1e-6)

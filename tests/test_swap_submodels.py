"""A swapped submodel, saved by the larger model that holds it, comes back swapped or not at all."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

import flashmix
from flashmix.errors import ArgumentError, ModelError
from flashmix.mixers import Mixer
from hf_models import COMMON, VISION, classifier, reviews, transformers

TEXT = {key: value for key, value in COMMON.items() if key != "initializer_range"}
IMAGE = {key: VISION[key] for key in {*VISION} - {"vocab_size", "max_position_embeddings"}}
IMAGE.pop("initializer_range")
MASKED = {f"decoder_{key}": IMAGE[key] for key in ("hidden_size", "num_attention_heads")}
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "num_layers": 2, "num_heads": 2, "d_ff": 32}


def two_towers(family: str):
    config = getattr(transformers, f"{family}Config")(vision_config=IMAGE, text_config=TEXT)
    return getattr(transformers, f"{family}Model")(config)


def masked_autoencoder():
    config = transformers.ViTMAEConfig(
        **IMAGE, **MASKED, decoder_num_hidden_layers=1, decoder_intermediate_size=32
    )
    return transformers.ViTMAEForPreTraining(config)


# The submodel's config is an entry of the outer model's, the same object, or a copy.
MODELS = {
    "clip vision": (lambda: two_towers("CLIP"), {"vision_model": "fnet,local(window=3)"}),
    "siglip both": (
        lambda: two_towers("Siglip"),
        {"vision_model": "spectral(modes=3)", "text_model": "fourier,fnet"},
    ),
    "vit mae": (masked_autoencoder, {"vit": "fourier,spectral(modes=3)"}),
    "bert": (lambda: classifier("bert"), {"bert": "fnet,spectral(modes=3)"}),
    "t5": (
        lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
        {"encoder": "attention,local(window=3)"},
    ),
    "umt5": (
        lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(**T5)),
        {"encoder": "local(window=3),attention"},
    ),
}
each_model = pytest.mark.parametrize("name", MODELS)


def build(name: str):
    torch.manual_seed(0)
    make, parts = MODELS[name]
    model = make().eval()
    for path, mixers in parts.items():
        flashmix.swap(model.get_submodule(path), mixers)
    for path, parameter in model.named_parameters():
        if ".mixer." in path:
            parameter.data += torch.randn_like(parameter)
    return model


def mixers(model) -> dict[str, str]:
    return {path: repr(part) for path, part in model.named_modules() if isinstance(part, Mixer)}


def assert_same(loaded, model) -> None:
    assert type(loaded) is type(model)
    assert mixers(loaded) == mixers(model) != {}
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert attentions(loaded) == attentions(model)


def attentions(model) -> dict[str, str]:
    return {
        path: part.config._attn_implementation
        for path, part in model.named_modules()
        if isinstance(part, transformers.PreTrainedModel)
    }


def batch(name: str) -> dict[str, torch.Tensor]:
    words, image = reviews(9, 4), {"pixel_values": torch.ones(2, 3, 16, 16)}
    if name in ("clip vision", "siglip both"):
        return {"input_ids": words["input_ids"], **image}
    return image if name == "vit mae" else words


@each_model
def test_a_swapped_submodel_comes_back_with_the_model_that_holds_it(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path)
    assert_same(loaded, model)
    for path in MODELS[name][1]:
        assert flashmix.swap_report(loaded.get_submodule(path)) == flashmix.swap_report(
            model.get_submodule(path)
        )
    loaded.save_pretrained(tmp_path / "again")
    assert_same(flashmix.from_pretrained(tmp_path / "again"), model)


@each_model
def test_transformers_alone_refuses_a_folder_with_a_swapped_submodel(name, tmp_path, monkeypatch):
    model = build(name)
    model.save_pretrained(tmp_path)
    plain = type(model).from_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"load swapped models with flashmix\.from_pretrained"):
        plain(**batch(name))
    monkeypatch.delitem(transformers.AttentionInterface._global_mapping, "mixers")
    for kind in (type(model), transformers.AutoModel):
        with pytest.raises(ValueError, match='attn_implementation="mixers"` is not supported'):
            kind.from_pretrained(tmp_path)


@each_model
def test_saving_leaves_the_outer_config_as_it_was(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "once")  # which notes dtype and class
    before = copy.deepcopy(vars(model.config))
    model.save_pretrained(tmp_path / "twice")
    assert repr(vars(model.config)) == repr(before)


def test_the_folder_says_which_submodels_were_swapped(tmp_path):
    build("siglip both").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    found = {path: part["mixers"] for path, part in config["flashmix"]["submodels"].items()}
    assert found == {
        "vision_model": ["spectral(modes=3)", "spectral(modes=3)"],
        "text_model": ["fourier", "fnet"],
    }


def test_a_swapped_submodel_gets_another_head(tmp_path):
    model = build("bert")
    model.save_pretrained(tmp_path)
    for kind in ("BertModel", "BertForMaskedLM"):
        loaded = flashmix.from_pretrained(tmp_path, kind)
        assert mixers(loaded.base_model) == mixers(model.bert)
    with pytest.raises(ArgumentError, match="'vit' was swapped, which a BertModel has not"):
        config = json.loads((tmp_path / "config.json").read_text())
        config["flashmix"]["submodels"]["vit"] = config["flashmix"]["submodels"].pop("bert")
        (tmp_path / "config.json").write_text(json.dumps(config))
        flashmix.from_pretrained(tmp_path, "BertModel")


def test_a_model_swapped_as_a_whole_after_its_part_is_recorded_as_a_whole(tmp_path):
    model = build("bert")
    flashmix.swap(model, {0: "spectral(modes=3)"})
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["flashmix"]["mixers"] == ["spectral(modes=3)", "spectral(modes=3)"]
    assert_same(flashmix.from_pretrained(tmp_path), model)


def test_models_that_share_a_config_keep_their_own_mixers(tmp_path):
    config = transformers.BertConfig(**COMMON)

    class Pair(transformers.BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.left, self.right = transformers.BertModel(config), transformers.BertModel(config)
            self.post_init()

    model = Pair(config).eval()
    flashmix.swap(model.left, "fnet")
    flashmix.swap(model.right, "attention,spectral(modes=3)")
    model.save_pretrained(tmp_path)
    assert_same(flashmix.from_pretrained(tmp_path, Pair), model)


def test_a_submodel_saved_without_its_place_is_refused(tmp_path):
    model = build("clip vision")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["flashmix"], config["attn_implementation"]  # as older versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (flashmix.from_pretrained, flashmix.hf.load):
        with pytest.raises(ArgumentError, match="a submodel was swapped, saved by a version"):
            load(tmp_path)


def test_an_unpickled_model_finds_its_attention_and_is_saved_whole(tmp_path, monkeypatch):
    model = build("clip vision")
    written = pickle.dumps(model)
    saves = transformers.PreTrainedModel.save_pretrained
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", saves.__wrapped__)
    monkeypatch.delitem(transformers.AttentionInterface._global_mapping, "mixers")
    loaded = pickle.loads(written)  # as in another process
    with torch.no_grad():
        got, want = (one(**batch("clip vision")).logits_per_image for one in (loaded, model))
    assert torch.equal(got, want)
    loaded.save_pretrained(tmp_path)
    assert_same(flashmix.from_pretrained(tmp_path), model)
